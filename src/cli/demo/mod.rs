//! `chandler demo`: the main job from end to end, through the server's own public HTTP API.

mod client;
mod dataset;
mod follow;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::artifacts::DataDir;
use crate::config::{Config, Settings};
use crate::domain::JobError;
use crate::hub::{Hub, HubEnv, HubOptions, ResolvedModel};

use super::serve::StopSignals;
use super::server::Server;
use client::Client;

/// A real 6-layer BERT of 90 MB.
const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Set everything up, train the embedded support-ticket data set through the HTTP API, show the result
#[derive(Args, Debug)]
pub struct Demo {
    /// Folder for the database, datasets, checkpoints and cached models
    #[arg(long, value_name = "DIR", default_value = "chandler-demo")]
    data_dir: PathBuf,
    /// Base model: a folder or a Hugging Face id
    #[arg(long, value_name = "PATH_OR_ID", default_value = DEFAULT_MODEL)]
    model: String,
    /// Address to listen on (127.0.0.1:8080, or any free port if that is taken)
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<std::net::SocketAddr>,
    /// Stop when the job has ended, instead of serving on
    #[arg(long)]
    exit: bool,
    /// Make the last line of output one JSON object
    #[arg(long)]
    json: bool,
}

impl Demo {
    /// Runs the demo.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::logs(false, "warn")?;
        let model = self.resolve_model()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.serve_and_train(&model))
    }

    /// Finds the base model before anything is started, so that a download shows and a failure is early.
    fn resolve_model(&self) -> anyhow::Result<ResolvedModel> {
        let data_dir = DataDir::open(&self.data_dir).map_err(JobError::from)?;
        println!("base model  {}", self.model);
        let options = HubOptions {
            progress: Some(Box::new(|line| println!("            {line}"))),
            ..HubOptions::new(data_dir, HubEnv::from_process())
        };
        Ok(Hub::new(options).resolve(&self.model)?)
    }

    async fn serve_and_train(&self, model: &ResolvedModel) -> anyhow::Result<ExitCode> {
        let server = self.start_server().await?;
        println!("server      {}", server.url());
        let client = Client::new(server.url());
        let mut stop = StopSignals::watch()?;
        let ended = tokio::select! {
            ended = self.train(&client, model) => Some(ended),
            _ = stop.next() => None,
        };
        let code = match ended {
            Some(Ok((job, classes))) => {
                let code = report::exit_code(&job);
                self.report(&client, &job, &classes, &server)?;
                if !self.exit {
                    println!("\nstill serving on {} — Ctrl-C stops it", server.url());
                    stop.next().await;
                }
                code
            }
            Some(Err(error)) => {
                server.drain().await;
                return Err(error);
            }
            None => {
                println!("\nstopping");
                ExitCode::from(130)
            }
        };
        server.drain().await;
        Ok(code)
    }

    async fn start_server(&self) -> anyhow::Result<Server> {
        let preferred = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
        let mut settings = Settings {
            listen: Some(self.listen.unwrap_or(preferred)),
            data_dir: Some(self.data_dir.clone()),
            ..Settings::default()
        };
        let free = self.listen.is_some() || std::net::TcpListener::bind(preferred).is_ok();
        if !free {
            settings.listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        }
        Server::start(&Config::new(settings)?).await
    }

    /// Uploads both files, posts the job, follows it to its end; answers the job and its per-class report.
    async fn train(
        &self,
        client: &Client,
        model: &ResolvedModel,
    ) -> anyhow::Result<(Value, Value)> {
        let train = client
            .upload("support-tickets-train", dataset::TRAIN)
            .await?;
        let eval = client.upload("support-tickets-eval", dataset::EVAL).await?;
        println!(
            "data        {} rows to train on, {} held out",
            train["rows"], eval["rows"]
        );
        let spec = job_spec(&self.model, &model.dir, &train["id"], &eval["id"])?;
        let job = client.post_job(&spec).await?;
        let id = job["id"]
            .as_str()
            .context("the server answered no job id")?
            .to_owned();
        println!("job         {id}");
        let classes = follow::follow(client, &id).await?;
        Ok((client.job(&id).await?, classes))
    }

    fn report(
        &self,
        client: &Client,
        job: &Value,
        classes: &Value,
        server: &Server,
    ) -> anyhow::Result<()> {
        if job["status"] == "succeeded" {
            report::results(job, classes)?;
            report::try_model(Path::new(report::model_dir(job)?))?;
        } else {
            report::failure(job);
        }
        report::by_hand(client.base_url(), &self.model, job);
        if self.json {
            println!("{}", report::json_line(job, classes, &server.url()));
        }
        Ok(())
    }
}

/// The demo's job: what one would POST by hand.
fn job_spec(requested: &str, dir: &Path, train: &Value, eval: &Value) -> anyhow::Result<Value> {
    // A folder given relative to this process means nothing to others.
    let model = if Path::new(requested).is_dir() {
        let dir = std::fs::canonicalize(dir)?;
        match dir.to_str() {
            Some(path) => path.to_owned(),
            None => bail!("the model's path is not UTF-8"),
        }
    } else {
        requested.to_owned()
    };
    Ok(json!({
        "name": "support-ticket-triage",
        "model": model,
        "task": "sequence_classification",
        "dataset": {"train": train, "eval": eval, "columns": {"text": "text", "label": "label"}},
        "max_seq_length": 96,
        "training_args": training_args(),
        "metadata": {"source": "chandler demo"},
    }))
}

fn training_args() -> Value {
    json!({
        "num_train_epochs": 6,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.1,
        "logging_steps": 10,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": true,
        "metric_for_best_model": "accuracy",
        "seed": 42,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DatasetId, JobSpec};

    #[test]
    fn the_demo_posts_a_valid_spec() {
        let id = json!(DatasetId(uuid::Uuid::nil()));
        let spec = job_spec(DEFAULT_MODEL, Path::new("/nowhere"), &id, &id).unwrap();
        assert_eq!(spec["model"], DEFAULT_MODEL);
        JobSpec::parse(&spec).unwrap();
    }
}
