//! The last step of every container process: find the program inside the container, and execute it.
//!
//! Runs with the container's root, user and capabilities, so that the answer to "may this be executed" is the true
//! one. Errors are worded as other runtimes word them, because clients look for these words.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

use crate::oci::status::words;

/// PATH for a process whose environment has none, as other runtimes have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file that `name` means, by the PATH of `env`.
pub fn find(name: &str, env: &[String]) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("exec: \"\": executable file not found in $PATH".to_owned());
    }
    if name.contains('/') {
        return check(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|reason| format!("exec: {name:?}: {reason}"));
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut refusal = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(reason) if reason.contains("permission denied") => refusal = Some(reason),
            Err(_) => {}
        }
    }
    let reason = refusal.unwrap_or_else(|| "executable file not found in $PATH".to_owned());
    Err(format!("exec: {name:?}: {reason}"))
}

fn check(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        words(errno)
    })?;
    if metadata.is_dir() {
        return Err("is a directory: permission denied".to_owned());
    }
    match faccessat(None, path, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        Err(Errno::EACCES) => Err("permission denied".to_owned()),
        // A seccomp profile may know nothing of faccessat2: execve will tell.
        _ => Ok(()),
    }
}

/// Replaces the process; returns only with a reason.
pub fn execute(args: &[String], env: &[String]) -> Result<Infallible, String> {
    let name = args.first().map_or("", String::as_str);
    let path = find(name, env)?;
    let text = |what: &str, value: &[u8]| {
        CString::new(value).map_err(|_| format!("exec: {name:?}: {what} contains a NUL byte"))
    };
    let file = text("the path", path.as_os_str().as_bytes())?;
    let args: Vec<CString> = args
        .iter()
        .map(|arg| text("an argument", arg.as_bytes()))
        .collect::<Result<_, _>>()?;
    let env: Vec<CString> = env
        .iter()
        .map(|entry| text("the environment", entry.as_bytes()))
        .collect::<Result<_, _>>()?;
    let Err(errno) = nix::unistd::execve(&file, &args, &env);
    Err(format!("exec: {name:?}: {}", words(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("strato-program-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("bin")).expect("a temporary folder");
            Self(path)
        }

        fn file(&self, name: &str, mode: u32) -> String {
            let path = self.0.join("bin").join(name);
            fs::write(&path, "").expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            path.display().to_string()
        }

        fn env(&self) -> Vec<String> {
            vec![format!("PATH=/nowhere:{}", self.0.join("bin").display())]
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn find_searches_path_in_order() {
        let folder = Folder::new("order");
        let tool = folder.file("tool", 0o755);
        assert_eq!(find("tool", &folder.env()), Ok(PathBuf::from(&tool)));
        assert_eq!(find(&tool, &[]), Ok(PathBuf::from(&tool)));
    }

    #[test]
    fn find_words_what_clients_look_for() {
        let folder = Folder::new("words");
        let plain = folder.file("plain", 0o644);
        let say = |name: &str| find(name, &folder.env()).expect_err("not found");
        assert_eq!(
            say("nope"),
            "exec: \"nope\": executable file not found in $PATH"
        );
        assert_eq!(say("/nope"), "exec: \"/nope\": no such file or directory");
        assert_eq!(say("plain"), "exec: \"plain\": permission denied");
        assert_eq!(say(&plain), format!("exec: {plain:?}: permission denied"));
        assert!(say("/tmp").contains("permission denied"));
        assert!(say("").contains("executable file not found"));
    }
}
