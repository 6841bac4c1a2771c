//! How a training talks to whoever started it: events go out, commands come in.

use crate::domain::{Command, Event, LogLevel, Phase};

/// Receives what happens; is asked once per step what to do next.
pub trait Observer: Sync {
    /// Something happened. Must not block on the network.
    fn event(&self, event: Event);

    /// What the server wants; asked between steps.
    fn command(&self) -> Command;

    /// The process is about to end: whatever was said should be on its way. Waits for a moment at most.
    fn flush(&self) {}

    /// The job does something else now.
    fn phase(&self, phase: Phase) {
        self.event(Event::Phase { phase });
    }

    /// A line worth keeping.
    fn log(&self, level: LogLevel, message: String) {
        self.event(Event::Log { level, message });
    }
}
