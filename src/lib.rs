pub mod domain;
pub mod kernels;
pub mod layers;
pub mod store;
pub mod worker;
