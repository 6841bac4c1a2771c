pub mod data;
pub mod domain;
pub mod http;
pub mod kernels;
pub mod layers;
pub mod store;
pub mod telemetry;
pub mod worker;
