//! Finds the `ashlar` command, and builds it once where it is not given.
//!
//! `ASHLAR_BIN` names a command to test (CI gives the release build). Otherwise the command is
//! built in the profile of the test itself, into the same target folder: cargo holds no lock on
//! it while tests run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The command that is tested.
pub fn ashlar() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match std::env::var_os("ASHLAR_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(
                path.is_file(),
                "ASHLAR_BIN={}: no such file",
                path.display()
            );
            path
        }
        None => build(),
    })
}

/// The folder that holds `debug/` or `release/`.
pub fn target_folder() -> PathBuf {
    let profile = profile_folder();
    let target = profile
        .parent()
        .expect("a profile's folder stands in another");
    target.to_owned()
}

/// The folder of this profile: tests run from its `deps/`, benchmarks that are programs from itself.
fn profile_folder() -> PathBuf {
    let exe = std::env::current_exe().expect("a program knows its own path");
    let folder = exe.parent().expect("a program stands in a folder");
    match folder.file_name().is_some_and(|name| name == "deps") {
        true => folder.parent().expect("deps stands in a profile's folder"),
        false => folder,
    }
    .to_owned()
}

fn build() -> PathBuf {
    let profile_folder = profile_folder();
    let folder_name = profile_folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let profile = if folder_name == "debug" {
        "dev"
    } else {
        folder_name.as_str()
    };
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--package",
            "ashlar-tools-cli",
            "--profile",
            profile,
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .env("CARGO_TARGET_DIR", target_folder())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the ashlar command does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = profile_folder.join("ashlar");
    assert!(path.is_file(), "cargo built no {}", path.display());
    path
}
