//! Compiles our kernels for GPUs when the feature `cuda` is on: all `.cu` files as one program, for the
//! generations of cards named below, into one image that the program carries.
//!
//! nvcc is `$NVCC`, or `$CUDA_HOME/bin/nvcc`, or the one on the path. `CHANDLER_CUDA_ARCHS` (such as `90` or
//! `80,90`) names other generations: fewer compile faster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Ampere, whose instructions also come as PTX, which the driver compiles for any newer card; and Hopper.
const ARCHS: &str = "80,90";

fn main() {
    println!("cargo::rerun-if-changed=src/kernels/cuda/build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CHANDLER_CUDA_ARCHS", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let mut files = Vec::new();
    find(Path::new("src/kernels"), &mut files);
    files.sort();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = env::current_dir().expect("a build runs in the package's folder");
    let mut program = String::new();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "cu"))
    {
        program.push_str(&format!("#include \"{}\"\n", here.join(file).display()));
    }
    fs::write(out.join("kernels.cu"), program).expect("OUT_DIR can be written to");
    compile(&out);
}

/// All CUDA files below a folder; cargo is told of each.
fn find(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path);
        }
    }
    println!("cargo::rerun-if-changed={}", dir.display());
}

fn compile(out: &Path) {
    let nvcc = match (env::var_os("NVCC"), env::var_os("CUDA_HOME")) {
        (Some(nvcc), _) => PathBuf::from(nvcc),
        (None, Some(home)) => PathBuf::from(home).join("bin/nvcc"),
        (None, None) => PathBuf::from("nvcc"),
    };
    let archs = env::var("CHANDLER_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "-Isrc/kernels/cuda"]);
    for (i, arch) in archs.split(',').enumerate() {
        let code = if i == 0 {
            format!("[sm_{arch},compute_{arch}]")
        } else {
            format!("sm_{arch}")
        };
        command.arg(format!("-gencode=arch=compute_{arch},code={code}"));
    }
    command
        .arg("-o")
        .arg(out.join("kernels.fatbin"))
        .arg(out.join("kernels.cu"));
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!(
            "{} ended with {status}; its messages are above",
            nvcc.display()
        ),
        Err(error) => panic!(
            "the feature `cuda` needs nvcc, and {} cannot be run ({error}); set NVCC or CUDA_HOME, or install one \
             with docker/cuda-toolchain.sh",
            nvcc.display()
        ),
    }
}
