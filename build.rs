//! Build steps: the code from `proto/`, and the run paths of the shared libraries.
//!
//! The binary must run without environment variables, so the folders of `libduckdb.so` and of
//! a libpython outside the system's folders become run paths (rpath) of everything we link.

use std::{env, path::Path, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services = ["proto/upload.proto", "proto/features.proto", "proto/admin.proto"];
    let worker = "proto/worker.proto";
    for proto in services.into_iter().chain([worker]) {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(services, ["proto"])?;
    tonic_prost_build::configure()
        .file_descriptor_set_path(Path::new(&env::var("OUT_DIR")?).join("millstream.bin"))
        .build_transport(true)
        .compile_fds(descriptors.clone())?;
    // `compile_fds` writes no descriptor file of its own; reflection needs one.
    let bytes = prost::Message::encode_to_vec(&descriptors);
    std::fs::write(Path::new(&env::var("OUT_DIR")?).join("millstream.bin"), bytes)?;
    // Compiled apart: what passes between a node and its workers is not for reflection to show.
    tonic_prost_build::configure().compile_fds(protox::compile([worker], ["proto"])?)?;

    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    println!("cargo:rerun-if-env-changed=PYO3_PYTHON");
    if env::var_os("CARGO_FEATURE_BUNDLED").is_none()
        && let Ok(dir) = env::var("DUCKDB_LIB_DIR")
    {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
    if let Some(dir) = python_lib_dir() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
    Ok(())
}

/// The folder of libpython, when it is not one the loader searches by itself.
fn python_lib_dir() -> Option<String> {
    let python = env::var("PYO3_PYTHON").unwrap_or_else(|_| "python3".into());
    let out = Command::new(python)
        .args(["-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR') or '')"])
        .output()
        .ok()?;
    let dir = String::from_utf8(out.stdout).ok()?.trim().to_owned();
    (!dir.is_empty() && dir != "/usr/lib" && !dir.starts_with("/usr/lib/")).then_some(dir)
}
