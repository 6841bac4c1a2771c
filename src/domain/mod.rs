//! Pure types that every other module speaks: ids, the job spec and its validation, devices and what a job takes of
//! them, status and its transitions, events, error codes, the attempt protocol, and the clock.
//!
//! Nothing here does IO. Time and ids come in through [`Clock`] and [`Ids`], so that every caller can be
//! tested with both fixed.

mod checkpoint;
mod clock;
mod columns;
mod dataset;
mod device;
mod device_memory;
mod error;
mod event;
mod fields;
mod ids;
mod job_spec;
mod protocol;
mod retry;
mod status;
mod training_arguments;

pub use checkpoint::{CheckpointRecord, FileRecord};
pub use clock::{Clock, FixedClock, SystemClock, Timestamp};
pub use columns::Columns;
pub use dataset::{DatasetFormat, DatasetLayout};
pub use device::{DEVICE_ENV, Device, DeviceKind, Placement, Slot};
pub use device_memory::ModelShape;
pub use error::{ErrorCode, FieldError, JobError};
pub use event::{ClassResult, Event, LogLevel, Progress};
pub use fields::ObjectReader;
pub use ids::{AttemptId, DatasetId, Ids, JobId, SequentialIds, SystemIds};
pub use job_spec::{DatasetSpec, JobSpec, MAX_PRIORITY, Task};
pub use protocol::{
    AttemptSpec, Command, DatasetLocation, HUNG_EXIT_CODE, Message, MessagesRequest,
    MessagesResponse,
};
pub use retry::{AfterLoss, LossCause, LossHistory, RetryPolicy};
pub use status::{Phase, Status};
pub use training_arguments::{
    Bf16, IntervalStrategy, SaveStrategy, SchedulerType, StepInterval, TrainingArguments,
};
