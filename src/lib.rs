pub mod artifacts;
pub mod domain;
pub mod kernels;
pub mod layers;
pub mod store;
