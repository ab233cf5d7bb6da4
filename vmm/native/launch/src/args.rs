//! The command line of strato-launch. Pure: words in, [`Options`] out.

use std::ffi::{CString, c_int};

use strato_plumbing::capabilities::Capabilities;

use crate::root::{Access, Entry};
use crate::{Failure, Result};

/// What the caller asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Cgroup directories to be in before the program runs.
    pub cgroups: Vec<CString>,
    /// Namespaces to make.
    pub new: NewNamespaces,
    /// An existing network namespace to enter.
    pub netns: Option<CString>,
    /// Mount a fresh proc on /proc.
    pub mount_proc: bool,
    /// An empty folder on which the program's own root is built.
    pub root: Option<CString>,
    /// What the program sees in that root.
    pub entries: Vec<Entry>,
    /// Programs and libraries that it sees with all that loading them takes.
    pub programs: Vec<CString>,
    /// The capabilities that the program and whatever it executes can have; None: all.
    pub capabilities: Option<Capabilities>,
    /// Nothing that is executed gains a privilege.
    pub no_new_privileges: bool,
    /// SIGKILL the program when the caller's thread dies.
    pub die_with_parent: bool,
    /// Working directory, as seen after all mounts.
    pub chdir: Option<CString>,
    /// Host name of the new uts namespace.
    pub hostname: Option<CString>,
    /// The program and its arguments; the first word is the path.
    pub program: Vec<CString>,
}

/// One flag per namespace kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespaces {
    pub pid: bool,
    pub mount: bool,
    pub ipc: bool,
    pub uts: bool,
    pub net: bool,
}

impl NewNamespaces {
    fn parse(list: &str) -> Result<Self> {
        let mut new = Self::default();
        for name in list.split(',') {
            match name {
                "pid" => new.pid = true,
                "mount" => new.mount = true,
                "ipc" => new.ipc = true,
                "uts" => new.uts = true,
                "net" => new.net = true,
                _ => {
                    return Err(Failure::refused(format!(
                        "Option --new does not know namespace {name:?}; use pid, mount, ipc, uts, net"
                    )));
                }
            }
        }
        Ok(new)
    }

    /// The CLONE_NEW* flags of these namespaces.
    pub fn clone_flags(self) -> c_int {
        let mut flags = 0;
        for (wanted, flag) in [
            (self.pid, libc::CLONE_NEWPID),
            (self.mount, libc::CLONE_NEWNS),
            (self.ipc, libc::CLONE_NEWIPC),
            (self.uts, libc::CLONE_NEWUTS),
            (self.net, libc::CLONE_NEWNET),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        flags
    }
}

/// Only the status descriptor; every other mistake is left to [`parse`].
///
/// # Errors
/// When its number is missing or is no number.
pub fn find_status_fd(words: &[CString]) -> Result<Option<c_int>> {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.to_bytes() {
            b"--" => return Ok(None),
            b"--status-fd" => return status_fd(rest.next()).map(Some),
            option if takes_value(option) => drop(rest.next()),
            _ => {}
        }
    }
    Ok(None)
}

fn takes_value(option: &[u8]) -> bool {
    let named: [&[u8]; 8] = [
        b"--cgroup",
        b"--new",
        b"--netns",
        b"--chdir",
        b"--hostname",
        b"--root",
        b"--bind-program",
        b"--capabilities",
    ];
    named.contains(&option) || access(option).is_some()
}

/// The options that show a path in the new root.
fn access(option: &[u8]) -> Option<Access> {
    match option {
        b"--bind" => Some(Access::Folder),
        b"--bind-ro" => Some(Access::Data),
        b"--bind-code" => Some(Access::Code),
        b"--bind-tree" => Some(Access::Tree),
        b"--bind-tree-ro" => Some(Access::TreeReadonly),
        b"--dev" => Some(Access::Device),
        b"--dev-ro" => Some(Access::DeviceReadonly),
        _ => None,
    }
}

fn status_fd(word: Option<&CString>) -> Result<c_int> {
    let text = word.and_then(|word| word.to_str().ok()).unwrap_or_default();
    match text.parse::<c_int>() {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(Failure::refused(format!("Option --status-fd needs a descriptor number, not {text:?}"))),
    }
}

/// Parses the whole command line (without the program's own name).
///
/// # Errors
/// Names the option and what to give instead.
pub fn parse(words: &[CString]) -> Result<Options> {
    let mut options = Options::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let name = word.to_string_lossy();
        let mut value =
            || rest.next().cloned().ok_or_else(|| Failure::refused(format!("Option {name} needs a value")));
        match word.to_bytes() {
            b"--status-fd" => drop(value()?),
            b"--cgroup" => options.cgroups.push(value()?),
            b"--new" => options.new = NewNamespaces::parse(&value()?.to_string_lossy())?,
            b"--netns" => options.netns = Some(value()?),
            b"--mount-proc" => options.mount_proc = true,
            b"--root" => options.root = Some(value()?),
            b"--bind-program" => options.programs.push(value()?),
            b"--capabilities" => {
                options.capabilities = Some(Capabilities::parse(&value()?.to_string_lossy())?);
            }
            b"--no-new-privileges" => options.no_new_privileges = true,
            b"--die-with-parent" => options.die_with_parent = true,
            b"--chdir" => options.chdir = Some(value()?),
            b"--hostname" => options.hostname = Some(value()?),
            b"--" => {
                options.program = rest.cloned().collect();
                break;
            }
            option => {
                let access = access(option).ok_or_else(|| {
                    Failure::refused(format!(
                        "Option {name:?} is unknown; usage: strato-launch [--status-fd N] [--cgroup DIR]... \
                         [--new pid,mount,ipc,uts,net] [--netns PATH] [--mount-proc] [--die-with-parent] \
                         [--chdir DIR] [--hostname NAME] [--capabilities LIST] [--no-new-privileges] \
                         [--root DIR [--bind PATH] [--bind-ro PATH] [--bind-code PATH] [--bind-tree PATH] \
                         [--bind-tree-ro PATH] [--bind-program PATH] [--dev PATH] [--dev-ro PATH]]... -- PROGRAM ARG..."
                    ))
                })?;
                options.entries.push(Entry { access, path: value()? });
            }
        }
    }
    validate(options)
}

fn validate(options: Options) -> Result<Options> {
    let Some(program) = options.program.first() else {
        return Err(Failure::refused("No program given; put -- and its path last"));
    };
    if !program.to_bytes().contains(&b'/') {
        return Err(Failure::refused(format!(
            "Program {program:?} must be given as a path; PATH is not searched"
        )));
    }
    if options.new.net && options.netns.is_some() {
        return Err(Failure::refused("Options --netns and --new net exclude each other"));
    }
    if options.mount_proc && !options.new.mount {
        return Err(Failure::refused(
            "Option --mount-proc needs --new mount, or it would hide the host's /proc",
        ));
    }
    if options.root.is_some() && !options.new.mount {
        return Err(Failure::refused("Option --root needs --new mount, or it would change the host's root"));
    }
    if options.root.is_none() && !(options.entries.is_empty() && options.programs.is_empty()) {
        return Err(Failure::refused("Options --bind…, --bind-program and --dev need --root"));
    }
    let relative = |path: &&CString| !path.to_bytes().starts_with(b"/");
    let paths = options.root.iter().chain(options.entries.iter().map(|entry| &entry.path));
    if let Some(path) = paths.chain(&options.programs).find(relative) {
        return Err(Failure::refused(format!("Path {path:?} must be absolute")));
    }
    if options.hostname.is_some() && !options.new.uts {
        return Err(Failure::refused("Option --hostname needs --new uts, or it would rename the host"));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<CString> {
        line.split_whitespace().map(|word| CString::new(word).unwrap()).collect()
    }

    fn refusal(line: &str) -> String {
        parse(&words(line)).unwrap_err().to_string()
    }

    #[test]
    fn parse_takes_every_option() {
        let line = "--status-fd 5 --cgroup /a --cgroup /b --new pid,mount,ipc,uts --netns /n --mount-proc \
                    --die-with-parent --chdir /tmp --hostname h -- /bin/true --new x";
        let options = parse(&words(line)).unwrap();
        assert_eq!(options.cgroups, words("/a /b"));
        assert_eq!(options.new, NewNamespaces { pid: true, mount: true, ipc: true, uts: true, net: false });
        assert_eq!(options.program, words("/bin/true --new x"));
        assert!(options.mount_proc && options.die_with_parent);
    }

    #[test]
    fn parse_collects_what_the_new_root_shows_in_order() {
        let line = "--new mount --root /r --bind-ro /d --bind /f --bind-code /c --bind-tree /t --dev /dev/null \
                    --bind-program /p --capabilities chown,mknod --no-new-privileges -- /p";
        let options = parse(&words(line)).unwrap();
        let shown: Vec<_> = options.entries.iter().map(|entry| entry.access).collect();
        assert_eq!(shown, [Access::Data, Access::Folder, Access::Code, Access::Tree, Access::Device]);
        assert_eq!(options.programs, words("/p"));
        assert_eq!(options.capabilities, Some(Capabilities::of(&[0, 27])));
        assert!(options.no_new_privileges);
    }

    #[test]
    fn clone_flags_cover_each_namespace() {
        let all = NewNamespaces::parse("pid,mount,ipc,uts,net").unwrap().clone_flags();
        let wanted = libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWNET;
        assert_eq!(all, wanted);
        assert_eq!(NewNamespaces::default().clone_flags(), 0);
    }

    #[test]
    fn parse_refuses_what_makes_no_sense() {
        assert!(refusal("--new pid").contains("No program"));
        assert!(refusal("-- true").contains("must be given as a path"));
        assert!(refusal("--new pid,user -- /x").contains("\"user\""));
        assert!(refusal("--new net --netns /n -- /x").contains("exclude"));
        assert!(refusal("--mount-proc -- /x").contains("--new mount"));
        assert!(refusal("--hostname h -- /x").contains("--new uts"));
        assert!(refusal("--root /r -- /x").contains("--new mount"));
        assert!(refusal("--new mount --bind /b -- /x").contains("need --root"));
        assert!(refusal("--new mount --root /r --bind b -- /x").contains("\"b\" must be absolute"));
        assert!(refusal("--capabilities all -- /x").contains("\"all\" is unknown"));
        assert!(refusal("--frob -- /x").contains("--frob"));
        assert!(refusal("--cgroup").contains("needs a value"));
    }

    #[test]
    fn find_status_fd_skips_values_and_the_program() {
        assert_eq!(find_status_fd(&words("--bind --status-fd --status-fd 7 -- /x")), Ok(Some(7)));
        assert_eq!(find_status_fd(&words("--new --status-fd --status-fd 7 -- /x")), Ok(Some(7)));
        assert_eq!(find_status_fd(&words("--new pid -- /x --status-fd 7")), Ok(None));
        assert!(find_status_fd(&words("--status-fd -3 -- /x")).is_err());
        assert!(find_status_fd(&words("--status-fd")).is_err());
    }
}
