//! Draws a job's event stream: a bar on a terminal, plain lines otherwise.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::Client;

/// How often a plain line shows progress.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// A stream that breaks is taken up again this often in a row.
const RECONNECTS: u32 = 20;

/// Follows the job until its terminal event was shown; answers the last per-class report.
pub async fn follow(client: &Client, id: &str) -> anyhow::Result<Value> {
    let mut view = View::new();
    let mut last_seen: Option<String> = None;
    for _ in 0..RECONNECTS {
        if let Ok(mut events) = client.events(id, last_seen.as_deref()).await {
            while let Some(Ok(event)) = events.next().await {
                let Some(data) = &event.data else { continue };
                let data: Value = serde_json::from_str(data)?;
                let ended = view.show(&data);
                if event.id.is_some() {
                    last_seen = event.id;
                }
                if ended {
                    return Ok(view.report);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    bail!("the event stream of job {id} broke off {RECONNECTS} times")
}

struct View {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    last_phase: String,
    report: Value,
}

impl View {
    fn new() -> Self {
        Self {
            bar: std::io::stdout().is_terminal().then(new_bar),
            last_line: None,
            last_phase: String::new(),
            report: Value::Null,
        }
    }

    /// Shows one event; answers whether it was the last.
    fn show(&mut self, event: &Value) -> bool {
        let data = &event["data"];
        match event["type"].as_str().unwrap_or_default() {
            "phase" => self.phase(data["phase"].as_str().unwrap_or_default()),
            "progress" => self.progress(data),
            "metrics" => self.metrics(data),
            "classification_report" => self.report = data.clone(),
            "log" if data["level"] != "info" => {
                self.line(&format!(
                    "  {}",
                    data["message"].as_str().unwrap_or_default()
                ));
            }
            "requeued" => {
                self.line(&format!(
                    "  requeued: {}",
                    data["reason"].as_str().unwrap_or_default()
                ));
            }
            "succeeded" | "failed" | "cancelled" => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
                return true;
            }
            _ => {}
        }
        false
    }

    fn phase(&mut self, phase: &str) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(phase.replace('_', " "));
        } else if matches!(phase, "resolving_model" | "tokenizing") && phase != self.last_phase {
            println!("            {}", phase.replace('_', " "));
        }
        phase.clone_into(&mut self.last_phase);
    }

    fn progress(&mut self, data: &Value) {
        let text = format!(
            "epoch {:.2}  loss {:.3}  {:.0} samples/s  {:.0} s left",
            data["epoch"].as_f64().unwrap_or_default(),
            data["loss"].as_f64().unwrap_or_default(),
            data["samples_per_second"].as_f64().unwrap_or_default(),
            data["eta_s"].as_f64().unwrap_or_default(),
        );
        let (step, total) = (
            data["global_step"].as_u64().unwrap_or_default(),
            data["total_steps"].as_u64().unwrap_or_default(),
        );
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(step);
            bar.set_message(text);
        } else if self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY) || step == total {
            self.last_line = Some(Instant::now());
            println!("            step {step}/{total}  {text}");
        }
    }

    fn metrics(&self, data: &Value) {
        if let Some(accuracy) = data["values"]["eval_accuracy"].as_f64() {
            self.line(&format!(
                "            epoch {:.0}: held-out accuracy {accuracy:.4}, loss {:.4}",
                data["epoch"].as_f64().unwrap_or_default(),
                data["values"]["eval_loss"].as_f64().unwrap_or_default(),
            ));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>10}  {bar:30} {pos}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
