//! The parts encoders are composed of: each with `forward`, which leaves what its backward needs in its
//! workspace, and `backward`, which consumes it and adds to the parameter gradients.

mod parameters;

pub use parameters::{Parameter, Parameters};
