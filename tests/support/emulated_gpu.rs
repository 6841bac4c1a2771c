//! The emulated GPU (`tests/cuda`): libraries that stand in for NVIDIA's driver and cuBLASLt, with our kernels in
//! them, compiled for the CPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

/// The folder of `libcuda.so` and `libcublasLt.so`: for `LD_LIBRARY_PATH` of a process that is started.
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

/// Loads them into this process. A later `dlopen` of their names finds them.
pub fn load() {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock().unwrap();
    if std::mem::replace(&mut loaded, true) {
        return;
    }
    for name in ["libcuda.so", "libcublasLt.so"] {
        // SAFETY: our own libraries; their initialisers register kernels.
        let library = unsafe { libloading::Library::new(libraries().join(name)) }.unwrap();
        // Until the process ends.
        std::mem::forget(library);
    }
}
