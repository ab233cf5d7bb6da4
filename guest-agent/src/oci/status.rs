//! The status pipe: every process on the way to a container's program holds its write end, close-on-exec.
//!
//! It ends without a word when the program has been executed (or the process was killed before). Otherwise it
//! carries records, `E` from the step that failed and knows why, `T` traced by the OCI library, each ended by NUL.

use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::descriptor::Descriptor;
use crate::errors::{Context, Result};
use crate::sync::lock;

/// More than this is not read; the writers are short.
const MOST: usize = 16384;

/// The agent's end.
pub struct StatusPipe {
    pipe: Descriptor,
    text: Mutex<Vec<u8>>,
}

impl StatusPipe {
    /// The agent's end, and the one for the helper.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).context("Making a pipe")?;
        let pipe = Descriptor::new(ours).context("Registering a pipe")?;
        let text = Mutex::new(Vec::new());
        Ok((Self { pipe, text }, theirs))
    }

    /// Waits until every writer has executed its program or is gone; the reason if there was one.
    pub async fn outcome(&self) -> Option<Failure> {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = self.pipe.read(&mut buffer).await {
            self.append(&buffer[..count]);
        }
        self.failure()
    }

    /// What has been written until now, without waiting.
    pub fn failure_so_far(&self) -> Option<Failure> {
        let mut buffer = [0; 1024];
        while let Ok(Some(count @ 1..)) = self.pipe.try_read(&mut buffer) {
            self.append(&buffer[..count]);
        }
        self.failure()
    }

    fn append(&self, bytes: &[u8]) {
        let mut text = lock(&self.text);
        if text.len() < MOST {
            text.extend_from_slice(bytes);
        }
    }

    fn failure(&self) -> Option<Failure> {
        Failure::parse(&lock(&self.text))
    }
}

impl AsFd for StatusPipe {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Why a program was not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// From the agent's own code: complete as it is.
    Explained(String),
    /// From the library's log: several short hints.
    Traced(Vec<String>),
}

impl Failure {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut hints = Vec::new();
        for record in bytes.split(|byte| *byte == 0) {
            match record.split_first() {
                Some((b'E', text)) => {
                    return Some(Self::Explained(String::from_utf8_lossy(text).into_owned()));
                }
                Some((b'T', text)) => hints.push(String::from_utf8_lossy(text).into_owned()),
                _ => {}
            }
        }
        (!hints.is_empty()).then_some(Self::Traced(hints))
    }

    /// In words; `library` is what the library returned, `cwd` the process's working directory.
    pub fn in_words(&self, library: &str, cwd: &str) -> String {
        let hints = match self {
            Self::Explained(text) => return text.clone(),
            Self::Traced(hints) => hints,
        };
        // libcontainer's words for two steps whose errors it returns without a name.
        if let Some(hint) = hints
            .iter()
            .find(|hint| hint.starts_with("failed to chdir"))
        {
            return format!("cwd {cwd:?}: {}", reason_in(hint));
        }
        if let Some(text) = failed_mount(hints) {
            return text;
        }
        let library = library.trim_start_matches(LIBRARY_PREFIX);
        match hints.first() {
            Some(first) if !library.contains(first.as_str()) => format!("{first}: {library}"),
            _ => library.to_owned(),
        }
    }
}

/// What libcontainer puts before every error of init.
const LIBRARY_PREFIX: &str =
    "failed to create container: exec process failed with error error in executing process : ";

/// Which mount failed, from the hints "failed to mount Mount { destination: …" and the one behind it.
fn failed_mount(hints: &[String]) -> Option<String> {
    let at = hints
        .iter()
        .position(|hint| hint.starts_with("failed to mount Mount {"))?;
    let hint = &hints[at];
    let between = |from: &str, to: &str| {
        let rest = &hint[hint.find(from)? + from.len()..];
        Some(&rest[..rest.find(to)?])
    };
    let destination = between("destination: \"", "\"")?;
    let kind = between("typ: Some(\"", "\"").unwrap_or("no type");
    let source = between("source: Some(\"", "\"").unwrap_or("none");
    let options = between("options: Some([", "])").unwrap_or_default();
    // The next hint carries the system's error in Rust's notation.
    let reason = hints.get(at + 1).map_or("failed", |next| reason_in(next));
    Some(format!(
        "mount on {destination:?} (type {kind}, source {source:?}, options [{options}]): {reason}"
    ))
}

/// The system's error in a hint: `e=ENOENT`, `Nix(ENOENT)` or `Os { code: 2, …, message: "No such file …" }`.
fn reason_in(hint: &str) -> &str {
    if let Some((_, rest)) = hint.rsplit_once("message: \"") {
        return rest.split('"').next().unwrap_or(rest);
    }
    let name = match hint.rsplit_once("Nix(") {
        Some((_, rest)) => rest.split(')').next().unwrap_or(rest),
        None => hint.rsplit('=').next().unwrap_or(hint),
    };
    match name {
        "ENOENT" => "no such file or directory",
        "ENOTDIR" => "not a directory",
        "EACCES" => "permission denied",
        "EPERM" => "operation not permitted",
        "EINVAL" => "invalid argument (unknown option or type?)",
        "ENODEV" => "unknown file system type",
        "ELOOP" => "too many symbolic links",
        other => other,
    }
}

/// An errno as the C library words it, in lower case as shells and runc print it.
pub fn words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

/// The helper's end.
pub struct StatusWriter(PipeWriter);

impl StatusWriter {
    pub fn new(fd: OwnedFd) -> Self {
        Self(PipeWriter::from(fd))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The reason, complete.
    pub fn explain(&self, text: &str) {
        self.record(b'E', text);
    }

    /// A hint from the library's log.
    pub fn trace(&self, text: &str) {
        self.record(b'T', text);
    }

    fn record(&self, kind: u8, text: &str) {
        let mut record = vec![kind];
        record.extend(text.bytes().filter(|byte| *byte != 0).take(2048));
        record.push(0);
        // One write below PIPE_BUF is atomic among the processes that share the pipe.
        let _ = (&self.0).write_all(&record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_prefers_the_explanation() {
        assert_eq!(Failure::parse(b""), None);
        assert_eq!(
            Failure::parse(b"Thint\0Ereason\0"),
            Some(Failure::Explained("reason".to_owned()))
        );
        assert_eq!(
            Failure::parse(b"Ta\0Tb\0"),
            Some(Failure::Traced(vec!["a".to_owned(), "b".to_owned()]))
        );
    }

    #[test]
    fn in_words_names_a_bad_cwd() {
        let failure = Failure::Traced(vec!["failed to chdir: e=ENOENT".to_owned()]);
        assert_eq!(
            failure.in_words("failed syscall", "/nope"),
            "cwd \"/nope\": no such file or directory"
        );
    }

    #[test]
    fn in_words_names_a_bad_mount() {
        let failure = |reason: &str| {
            Failure::Traced(vec![
                "failed to canonicalize".to_owned(),
                "failed to mount Mount { destination: \"/m\", typ: Some(\"bind\"), source: Some(\"/s\"), \
                 options: Some([\"rbind\", \"ro\"]), uid_mappings: None }: syscall"
                    .to_owned(),
                reason.to_owned(),
            ])
        };
        let head = "mount on \"/m\" (type bind, source \"/s\", options [\"rbind\", \"ro\"]): ";
        assert_eq!(
            failure("x: err=Mount(Syscall(Nix(ENOENT)))").in_words("", "/"),
            format!("{head}no such file or directory")
        );
        assert_eq!(
            failure("x: err=Mount(Io(Os { code: 5, message: \"I/O error\" }))").in_words("", "/"),
            format!("{head}I/O error")
        );
    }

    #[test]
    fn in_words_puts_the_first_hint_before_the_library_error() {
        let failure = Failure::Traced(vec!["failed to mount x".to_owned(), "failed".to_owned()]);
        assert_eq!(
            failure.in_words("failed to prepare rootfs", "/"),
            "failed to mount x: failed to prepare rootfs"
        );
    }
}
