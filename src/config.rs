//! The server's settings: flags over environment over file over defaults. Unknown keys are refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;

use crate::domain::{ErrorCode, JobError};

/// Settings as given: by flag, environment or file. Every one may be absent.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address to listen on
    #[arg(long, env = "CHANDLER_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Folder for the database, datasets, checkpoints and cached models
    #[arg(long, env = "CHANDLER_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Jobs trained on the processor at a time (0 accepts and queues but trains nothing), or `auto`: jobs are
    /// trained on this machine's GPUs, if it has any
    #[arg(long, env = "CHANDLER_SLOTS", value_name = "N|auto")]
    pub slots: Option<SlotSetting>,
    /// With `--slots auto`, jobs trained on one GPU at a time, as far as its memory suffices
    #[arg(long, env = "CHANDLER_JOBS_PER_GPU", value_name = "N")]
    pub jobs_per_gpu: Option<u32>,
    /// Threads of one trainer (all cores shared between the slots unless given)
    #[arg(long, env = "CHANDLER_THREADS", value_name = "N")]
    pub threads: Option<u32>,
    /// Log lines as JSON
    #[arg(long, env = "CHANDLER_LOG_JSON", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub log_json: Option<bool>,
    /// When told to stop, make trainers save and leave; otherwise they train on, and the next server on
    /// this address and data directory takes them over. Ctrl-C always drains
    #[arg(long, env = "CHANDLER_DRAIN", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub drain: Option<bool>,
    #[command(flatten)]
    #[serde(default)]
    pub attempts: AttemptSettings,
}

/// What jobs are trained on: a number, or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberOrWord")]
pub enum SlotSetting {
    /// The processor, so many jobs at a time.
    Cpu(u32),
    /// The GPUs there are; without any, the processor.
    Auto,
}

impl Default for SlotSetting {
    fn default() -> Self {
        Self::Cpu(Self::CPU_JOBS)
    }
}

impl SlotSetting {
    /// Jobs at a time on the processor unless given: a trainer has use for all cores.
    pub const CPU_JOBS: u32 = 1;
}

impl FromStr for SlotSetting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number
                .parse()
                .map(Self::Cpu)
                .map_err(|_| format!("`{text}` is neither a number nor `auto`")),
        }
    }
}

/// As TOML has it: `2` or `"auto"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrWord {
    Number(u32),
    Word(String),
}

impl TryFrom<NumberOrWord> for SlotSetting {
    type Error = String;
    fn try_from(given: NumberOrWord) -> Result<Self, String> {
        match given {
            NumberOrWord::Number(jobs) => Ok(Self::Cpu(jobs)),
            NumberOrWord::Word(word) => word.parse(),
        }
    }
}

/// Time limits of attempts; in a file the table `[attempts]`. Not for everyday use.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptSettings {
    /// An attempt silent for this long is given up
    #[arg(long, env = "CHANDLER_LEASE_MS", value_name = "MS", hide = true)]
    pub lease_ms: Option<i64>,
    /// A trainer reports at least this often
    #[arg(long, env = "CHANDLER_HEARTBEAT_MS", value_name = "MS", hide = true)]
    pub heartbeat_ms: Option<u64>,
}

impl Settings {
    /// Settings from a TOML file.
    ///
    /// # Errors
    /// `config_invalid`, with the file's name and what is wrong in it.
    pub fn from_file(path: &Path) -> Result<Self, JobError> {
        let invalid = |what: String| {
            JobError::new(
                ErrorCode::ConfigInvalid,
                format!("{}: {what}", path.display()),
            )
        };
        let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
        toml::from_str(&text).map_err(|e| invalid(e.to_string()))
    }

    /// `self` where given, else `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            data_dir: self.data_dir.or(other.data_dir),
            slots: self.slots.or(other.slots),
            jobs_per_gpu: self.jobs_per_gpu.or(other.jobs_per_gpu),
            threads: self.threads.or(other.threads),
            log_json: self.log_json.or(other.log_json),
            drain: self.drain.or(other.drain),
            attempts: AttemptSettings {
                lease_ms: self.attempts.lease_ms.or(other.attempts.lease_ms),
                heartbeat_ms: self.attempts.heartbeat_ms.or(other.attempts.heartbeat_ms),
            },
        }
    }
}

/// Settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The data directory.
    pub data_dir: PathBuf,
    /// What jobs are trained on.
    pub slots: SlotSetting,
    /// Jobs trained on one GPU at a time, 1 unless given: a trainer has use for a whole card, and two at once each
    /// take about twice as long. More pays where jobs are small.
    pub jobs_per_gpu: u32,
    /// Threads of one trainer, where given.
    pub threads: Option<u32>,
    /// Whether trainers leave when the server does.
    pub drain: bool,
    /// Time limits of attempts.
    pub attempts: AttemptConfig,
}

/// Time limits of attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptConfig {
    /// An attempt silent for this long is given up.
    pub lease_ms: i64,
    /// A trainer reports at least this often.
    pub heartbeat_ms: u64,
    /// Trainers that may die on one job before it fails.
    pub max_attempts: u32,
    /// How long a stopping server waits for its trainers to save and leave.
    pub stop_grace_ms: u64,
}

impl Default for AttemptConfig {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            heartbeat_ms: 2_000,
            max_attempts: 3,
            stop_grace_ms: 8_000,
        }
    }
}

impl AttemptConfig {
    fn new(settings: &AttemptSettings) -> Result<Self, JobError> {
        let default = Self::default();
        let heartbeat_ms = settings.heartbeat_ms.unwrap_or(default.heartbeat_ms);
        let lease_ms = settings.lease_ms.unwrap_or(default.lease_ms);
        let beats = i64::try_from(heartbeat_ms).unwrap_or(i64::MAX);
        // One slow answer must not fence a healthy trainer.
        if heartbeat_ms == 0 || lease_ms < beats.saturating_mul(3) {
            return Err(JobError::new(
                ErrorCode::ConfigInvalid,
                format!(
                    "lease_ms is {lease_ms} and heartbeat_ms is {heartbeat_ms}, but a lease must last three heartbeats"
                ),
            ));
        }
        Ok(Self {
            lease_ms,
            heartbeat_ms,
            ..default
        })
    }
}

impl Config {
    /// Fills in defaults.
    ///
    /// # Errors
    /// `config_invalid` for a value out of range.
    pub fn new(settings: Settings) -> Result<Self, JobError> {
        let slots = settings.slots.unwrap_or_default();
        let cpu_jobs = match slots {
            SlotSetting::Cpu(jobs) => Some(jobs),
            SlotSetting::Auto => None,
        };
        let limits = [
            ("slots", cpu_jobs, 0, 256),
            ("jobs_per_gpu", settings.jobs_per_gpu, 1, 64),
            ("threads", settings.threads, 1, 1024),
        ];
        for (name, value, low, high) in limits {
            if let Some(value) = value
                && !(low..=high).contains(&value)
            {
                return Err(JobError::new(
                    ErrorCode::ConfigInvalid,
                    format!("{name} is {value}, but must be between {low} and {high}"),
                ));
            }
        }
        let listen = settings
            .listen
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        Ok(Self {
            listen,
            data_dir: settings
                .data_dir
                .unwrap_or_else(|| PathBuf::from("chandler-data")),
            slots,
            jobs_per_gpu: settings.jobs_per_gpu.unwrap_or(1),
            threads: settings.threads,
            // On a port that the system chooses, the trainers would never find the next server.
            drain: settings.drain.unwrap_or(listen.port() == 0),
            attempts: AttemptConfig::new(&settings.attempts)?,
        })
    }

    /// Threads of one trainer when `jobs` are trained at a time: all cores shared between them, unless given.
    pub fn threads_of_one(&self, jobs: u32) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = u32::try_from(cores).unwrap_or(1) / jobs.max(1);
        self.threads.unwrap_or(shared.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chandler.toml");
        std::fs::write(&path, "slots = 3\nlisten = \"127.0.0.1:9000\"\n").unwrap();
        let flags = Settings {
            slots: Some(SlotSetting::Cpu(2)),
            ..Settings::default()
        };
        let config = Config::new(flags.or(Settings::from_file(&path).unwrap())).unwrap();
        assert_eq!(config.slots, SlotSetting::Cpu(2));
        assert_eq!(config.listen.port(), 9000);
        assert_eq!(config.data_dir, PathBuf::from("chandler-data"));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chandler.toml");
        std::fs::write(&path, "slotz = 3\n").unwrap();
        let error = Settings::from_file(&path).unwrap_err();
        assert_eq!(error.code, ErrorCode::ConfigInvalid);
        assert!(error.message.contains("slotz"), "{}", error.message);
        for (text, named) in [
            ("slots = 1000", "slots"),
            ("slots = -1", "slots"),
            ("slots = \"all\"", "`all`"),
            ("jobs_per_gpu = 0", "jobs_per_gpu"),
            ("threads = 0", "threads"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Settings::from_file(&path)
                .and_then(Config::new)
                .unwrap_err();
            assert_eq!(error.code, ErrorCode::ConfigInvalid);
            assert!(error.message.contains(named), "{}", error.message);
        }
    }

    #[test]
    fn slots_are_a_number_or_auto() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chandler.toml");
        std::fs::write(&path, "slots = \"auto\"\njobs_per_gpu = 4\n").unwrap();
        let config = Config::new(Settings::from_file(&path).unwrap()).unwrap();
        assert_eq!((config.slots, config.jobs_per_gpu), (SlotSetting::Auto, 4));
        let config = Config::new(Settings::default()).unwrap();
        assert_eq!(
            (config.slots, config.jobs_per_gpu),
            (SlotSetting::Cpu(1), 1)
        );
        assert_eq!("auto".parse(), Ok(SlotSetting::Auto));
        assert_eq!("3".parse(), Ok(SlotSetting::Cpu(3)));
        for wrong in ["", "Auto", "-1", "1.5", "gpu"] {
            assert!(wrong.parse::<SlotSetting>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn trainers_share_the_cores_unless_told_otherwise() {
        let cores = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let mut config = Config::new(Settings::default()).unwrap();
        assert_eq!(config.threads_of_one(1), cores);
        assert_eq!(config.threads_of_one(0), cores);
        assert_eq!(config.threads_of_one(10_000), 1);
        config.threads = Some(3);
        assert_eq!(config.threads_of_one(10_000), 3);
    }

    #[test]
    fn trainers_outlive_a_server_that_can_be_found_again() {
        let drain = |listen: &str, drain| {
            let settings = Settings {
                listen: Some(listen.parse().unwrap()),
                drain,
                ..Settings::default()
            };
            Config::new(settings).unwrap().drain
        };
        assert!(!drain("127.0.0.1:9000", None));
        assert!(drain("127.0.0.1:9000", Some(true)));
        assert!(drain("127.0.0.1:0", None));
        assert!(!drain("127.0.0.1:0", Some(false)));
    }

    #[test]
    fn a_lease_lasts_three_heartbeats() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chandler.toml");
        let config = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::new(Settings::from_file(&path).unwrap())
        };
        let attempts = config("[attempts]\nlease_ms = 900\nheartbeat_ms = 300\n")
            .unwrap()
            .attempts;
        assert_eq!((attempts.lease_ms, attempts.heartbeat_ms), (900, 300));
        for text in ["lease_ms = 5999", "heartbeat_ms = 0", "heartbeat_ms = 3334"] {
            let error = config(&format!("[attempts]\n{text}\n")).unwrap_err();
            assert_eq!(error.code, ErrorCode::ConfigInvalid, "{text}");
        }
    }
}
