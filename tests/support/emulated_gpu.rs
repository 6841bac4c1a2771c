//! The emulated GPU (`tests/cuda`): libraries that stand in for NVIDIA's driver and cuBLASLt, with our kernels in
//! them, compiled for the CPU. The crate's own tests have this file too (`kernels/cuda/emulated.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};

/// The folder of `libcuda.so` and `libcublasLt.so`: for `LD_LIBRARY_PATH` of a process that is started. Built here,
/// if anything changed.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/build.sh");
        let out = std::env::current_exe()
            .unwrap()
            .with_file_name("emulated-cuda");
        let built = Command::new("bash").arg(script).arg(&out).status();
        assert!(
            built.unwrap().success(),
            "the emulated driver does not build"
        );
        out
    })
}

/// Loads them into this process: a later `dlopen` of their names finds them. With `CHANDLER_TEST_GPU=1` a real card is
/// used instead.
pub fn load() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if std::env::var_os("CHANDLER_TEST_GPU").is_some() {
            return;
        }
        for name in ["libcuda.so", "libcublasLt.so"] {
            // SAFETY: our own libraries; their initialisers register kernels.
            let library = unsafe { libloading::Library::new(libraries().join(name)) }.unwrap();
            // Until the process ends.
            std::mem::forget(library);
        }
    });
}
