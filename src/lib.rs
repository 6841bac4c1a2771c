pub mod domain;
pub mod heads;
pub mod kernels;
pub mod layers;
pub mod models;
pub mod store;
