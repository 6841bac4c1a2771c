pub mod artifacts;
pub mod domain;
pub mod hub;
pub mod kernels;
pub mod layers;
pub mod store;
