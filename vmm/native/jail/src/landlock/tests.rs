//! What is left of the file system to a thread that has restricted itself.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use strato_plumbing::capabilities;

use super::*;

/// A folder of its own for each test, with `in/`, `tree/`, `out/` and a file in each.
fn place(name: &str) -> PathBuf {
    let place = std::env::temp_dir().join(format!("strato-landlock-{name}-{}", std::process::id()));
    for folder in ["read", "folder", "tree", "out"] {
        fs::create_dir_all(place.join(folder)).unwrap();
        fs::write(place.join(folder).join("file"), folder).unwrap();
    }
    place
}

/// Restricts a thread to the place's folders and runs `work` there.
fn restricted<T: Send>(place: &Path, work: impl FnOnce() -> T + Send) -> T {
    let paths =
        ["read", "folder", "tree"].map(|name| CString::new(place.join(name).to_str().unwrap()).unwrap());
    let [read, folder, tree] = &paths;
    let outcome = std::thread::scope(|scope| {
        let confined = scope.spawn(|| {
            capabilities::no_new_privileges().unwrap();
            let null = (c"/dev/null", Use::Device);
            let version =
                restrict(&[(read, Use::Read), (folder, Use::Folder), (tree, Use::Tree), null]).unwrap();
            assert!(version >= 2);
            work()
        });
        confined.join().unwrap()
    });
    fs::remove_dir_all(place).unwrap();
    outcome
}

fn skipped() -> bool {
    if version() < 2 {
        eprintln!("skipped: this kernel has no Landlock");
    }
    version() < 2
}

#[test]
fn files_beyond_the_paths_cannot_be_opened() {
    if skipped() {
        return;
    }
    let place = place("beyond");
    restricted(&place, || {
        assert_eq!(fs::read(place.join("read/file")).unwrap(), b"read");
        assert!(fs::read_dir(place.join("read")).is_ok());
        for path in [place.join("out/file"), "/etc/passwd".into(), "/dev/zero".into()] {
            let refused = fs::read(&path).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{path:?}");
        }
        fs::write("/dev/null", "x").unwrap();
    });
}

#[test]
fn what_may_be_read_cannot_be_changed_or_run() {
    if skipped() {
        return;
    }
    let place = place("read");
    restricted(&place, || {
        assert!(fs::write(place.join("read/file"), "x").is_err());
        assert!(fs::write(place.join("read/new"), "x").is_err());
        assert!(fs::remove_file(place.join("read/file")).is_err());
        for path in ["/bin/true", "/proc/self/exe"] {
            let refused = std::process::Command::new(path).spawn().unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{path}");
        }
    });
}

#[test]
fn folder_takes_files_and_sockets_only() {
    if skipped() {
        return;
    }
    let place = place("folder");
    restricted(&place, || {
        fs::write(place.join("folder/new"), "x").unwrap();
        fs::rename(place.join("folder/new"), place.join("folder/newer")).unwrap();
        fs::remove_file(place.join("folder/newer")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(place.join("folder/s")).unwrap());
        assert!(fs::create_dir(place.join("folder/d")).is_err());
        assert!(std::os::unix::fs::symlink("/etc", place.join("folder/l")).is_err());
    });
}

#[test]
fn tree_takes_everything_and_moves_it_between_its_folders() {
    if skipped() {
        return;
    }
    let place = place("tree");
    restricted(&place, || {
        fs::create_dir(place.join("tree/a")).unwrap();
        fs::create_dir(place.join("tree/b")).unwrap();
        fs::write(place.join("tree/a/x"), "x").unwrap();
        fs::rename(place.join("tree/a/x"), place.join("tree/b/x")).unwrap();
        fs::hard_link(place.join("tree/b/x"), place.join("tree/a/y")).unwrap();
        std::os::unix::fs::symlink("/etc", place.join("tree/l")).unwrap();
        // Neither out of the tree nor into it.
        assert!(fs::rename(place.join("tree/b/x"), place.join("folder/x")).is_err());
        assert!(fs::hard_link(place.join("out/file"), place.join("tree/z")).is_err());
    });
}

#[test]
fn missing_path_is_named() {
    if skipped() {
        return;
    }
    let refused = std::thread::spawn(|| {
        capabilities::no_new_privileges().unwrap();
        restrict(&[(c"/nonexistent", Use::Read)]).unwrap_err()
    });
    assert!(refused.join().unwrap().to_string().contains("/nonexistent"));
}
