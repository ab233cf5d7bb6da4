//! Every device core is made like its siblings, and stands in `KINDS`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use strato_proof::subject::KINDS;

/// What each folder has; see the crate's documentation.
const FILES: [&str; 5] = ["device.rs", "queue.rs", "backend.rs", "metrics.rs", "state.rs"];

/// Folders of the devices, by the devices' names.
fn devices() -> Vec<(String, PathBuf)> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../devices/src");
    let folders = fs::read_dir(&sources).unwrap().map(|entry| entry.unwrap().path());
    folders
        .filter(|path| path.is_dir())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect()
}

#[test]
fn every_device_has_the_files_of_its_siblings() {
    let devices = devices();
    assert!(devices.len() >= 7, "{devices:?}");
    for (name, folder) in devices {
        for file in FILES {
            assert!(folder.join(file).is_file(), "{name} has no {file}");
        }
        let tests = ["tests.rs", "tests/mod.rs"].map(|file| folder.join(file).is_file());
        assert!(tests.contains(&true), "{name} has no tests");
        let core = fs::read_to_string(folder.join("device.rs")).unwrap();
        assert!(core.contains("\nimpl DeviceCore for "), "{name}: the core is elsewhere");
        for file in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let is_control = file.file_name().is_some_and(|name| name == "control.rs");
            let has_handle = file.is_file() && fs::read_to_string(&file).unwrap().lines().any(is_handle);
            assert_eq!(
                is_control,
                has_handle,
                "{}: a handle on a running device is in control.rs",
                file.display()
            );
        }
    }
}

/// The line that begins the handle on a running device.
fn is_handle(line: &str) -> bool {
    let name = line
        .strip_prefix("pub struct ")
        .and_then(|rest| rest.split(|end: char| !end.is_alphanumeric()).next());
    name.is_some_and(|name| name.ends_with("Control"))
}

#[test]
fn every_device_is_put_to_the_proof() {
    for (name, _) in devices() {
        let variant = format!("{name}-");
        let kinds = KINDS.iter().filter(|kind| kind.name == name || kind.name.starts_with(&variant));
        assert!(kinds.count() > 0, "{name} is not in KINDS");
    }
}
