pub mod data;
pub mod domain;
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod optim;
pub mod store;
