//! What a training inside this process reports.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use chandler::domain::{Command, Event};
use chandler::train::Observer;

/// Keeps all events; asks for a pause at the n-th question.
#[derive(Default)]
pub struct Recorder {
    pub events: Mutex<Vec<Event>>,
    pub pause_at: Option<u64>,
    asked: AtomicU64,
}

impl Recorder {
    pub fn pausing_at(question: u64) -> Self {
        Self {
            pause_at: Some(question),
            ..Self::default()
        }
    }

    pub fn messages(&self) -> Vec<String> {
        let log = |event: &Event| match event {
            Event::Log { message, .. } => Some(message.clone()),
            _ => None,
        };
        self.events.lock().unwrap().iter().filter_map(log).collect()
    }

    /// Steps of published checkpoints, in order.
    pub fn published(&self) -> Vec<u64> {
        let step = |event: &Event| match event {
            Event::Checkpoint(record) => Some(record.step),
            _ => None,
        };
        self.events
            .lock()
            .unwrap()
            .iter()
            .filter_map(step)
            .collect()
    }

    /// The values of one metric, with their steps.
    pub fn series(&self, name: &str) -> Vec<(u64, f64)> {
        let value = |event: &Event| match event {
            Event::Metrics { step, values, .. } => values.get(name).map(|v| (*step, *v)),
            _ => None,
        };
        self.events
            .lock()
            .unwrap()
            .iter()
            .filter_map(value)
            .collect()
    }
}

impl Observer for Recorder {
    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn command(&self) -> Command {
        let question = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        match self.pause_at {
            Some(at) if question >= at => Command::Pause,
            _ => Command::Continue,
        }
    }
}
