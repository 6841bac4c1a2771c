//! From gradients to new weights: AdamW with HF's two parameter groups, gradient clipping, and learning-rate
//! schedules. All state can be saved by name; schedules are pure functions of the step.

mod adamw;
mod clip;
mod grad_norm;
mod param_groups;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, OptimizerStateError};
pub use clip::{Clip, GradScale, Measured};
pub use grad_norm::{global_grad_norm, missing_gradients};
pub use param_groups::{ParamGroups, decays};
pub use schedule::{Schedule, ScheduleKind};
