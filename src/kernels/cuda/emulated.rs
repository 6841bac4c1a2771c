//! A GPU for tests: an emulated driver (`tests/cuda`) runs our kernels on the CPU, with its checks on; so the
//! same bodies of tests run on every device. With `CHANDLER_TEST_GPU=1` they run on a real card instead.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::Gpu;
use crate::kernels::device::Device;

/// The one GPU of all tests of a process.
pub fn device() -> Device {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        if std::env::var_os("CHANDLER_TEST_GPU").is_none() {
            load_emulated_driver();
        }
        Gpu::open(0).unwrap()
    });
    Device::Gpu(gpu.clone())
}

/// Builds the emulated libraries, if anything changed, and loads them: a later `dlopen` of their names finds them.
fn load_emulated_driver() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::current_exe()
        .unwrap()
        .with_file_name("emulated-cuda");
    let built = Command::new("bash")
        .arg(package.join("tests/cuda/build.sh"))
        .arg(&out)
        .status();
    assert!(
        built.unwrap().success(),
        "the emulated driver does not build"
    );
    for library in ["libcuda.so", "libcublasLt.so"] {
        // SAFETY: our own libraries; their initialisers register kernels.
        let library = unsafe { libloading::Library::new(out.join(library)) }.unwrap();
        // Until the process ends.
        std::mem::forget(library);
    }
}
