pub mod data;
pub mod domain;
pub mod heads;
pub mod http;
pub mod hub;
#[allow(unsafe_code, reason = "the one module with unsafe blocks")]
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod optim;
pub mod store;
pub mod telemetry;
pub mod train;
pub mod worker;
