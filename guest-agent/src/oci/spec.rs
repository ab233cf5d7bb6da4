//! The guest's OCI spec: what the agent reads of it, and what it changes before the library sees it.
//!
//! Changes are of two kinds: what the library would do wrongly (each with its reason), and what follows from the
//! request's Stdio. Everything else reaches the library as the host sent it.

use std::fs;
use std::io::Read;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde_json::{Map, Value, json};

use crate::cgroup::Cgroup;
use crate::errors::{AgentError, Result};
use crate::stdio::Wanted;

/// Largest /etc/passwd that is searched for a home directory.
const MAX_PASSWD: u64 = 1 << 20;

/// What the agent keeps of a container's spec.
#[derive(Debug)]
pub struct ContainerSpec {
    pub json: Value,
    pub cgroup: Cgroup,
    pub seccomp: Option<Value>,
    pub owner: (u32, u32),
    pub cwd: String,
    pub own_user_namespace: bool,
    pub own_time_namespace: bool,
}

impl ContainerSpec {
    /// Reads and adapts a spec; errors name the JSON path.
    pub fn parse(container_id: &str, bytes: &[u8], wanted: &Wanted) -> Result<Self> {
        let mut json: Value = serde_json::from_slice(bytes)
            .map_err(|error| AgentError::invalid(format!("The OCI spec is not JSON: {error}")))?;
        let root = text_at(&json, "/root/path")
            .ok_or_else(|| AgentError::invalid("root.path is missing"))?
            .to_owned();
        if !Path::new(&root).is_dir() {
            return Err(AgentError::invalid(format!(
                "root.path {root:?}: no such directory in the guest"
            )));
        }
        adapt_linux(&mut json, container_id)?;
        adapt_mounts(&mut json);
        let process = json
            .get_mut("process")
            .ok_or_else(|| AgentError::invalid("process is missing"))?;
        adapt_process(process, wanted, |uid| home_of(&root, uid))?;
        let cgroups_path = text_at(&json, "/linux/cgroupsPath").unwrap_or_default();
        Ok(Self {
            cgroup: Cgroup::from_spec_path(cgroups_path)?,
            seccomp: json
                .pointer("/linux/seccomp")
                .filter(|v| !v.is_null())
                .cloned(),
            owner: owner(&json["process"]),
            cwd: text_at(&json, "/process/cwd").unwrap_or("/").to_owned(),
            own_user_namespace: has_namespace(&json, "user"),
            own_time_namespace: has_namespace(&json, "time"),
            json,
        })
    }

    /// The spec's limits and device rules.
    pub fn resources(&self) -> Option<&Value> {
        self.json.pointer("/linux/resources")
    }
}

/// Reads and adapts an exec's `process`. HOME is found by the helper, inside the container.
pub fn parse_process(bytes: &[u8], wanted: &Wanted) -> Result<Value> {
    let mut process: Value = serde_json::from_slice(bytes)
        .map_err(|error| AgentError::invalid(format!("The OCI process is not JSON: {error}")))?;
    adapt_process(&mut process, wanted, |_| None)?;
    Ok(process)
}

/// The uid and gid of a process.
pub fn owner(process: &Value) -> (u32, u32) {
    let id = |name: &str| {
        process
            .pointer(&format!("/user/{name}"))
            .and_then(Value::as_u64)
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(0)
    };
    (id("uid"), id("gid"))
}

fn text_at<'a>(json: &'a Value, pointer: &str) -> Option<&'a str> {
    json.pointer(pointer).and_then(Value::as_str)
}

fn namespaces(json: &Value) -> impl Iterator<Item = &Value> {
    json.pointer("/linux/namespaces")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn has_namespace(json: &Value, kind: &str) -> bool {
    namespaces(json).any(|namespace| namespace["type"] == kind)
}

fn object<'a>(value: &'a mut Value, what: &str) -> Result<&'a mut Map<String, Value>> {
    value
        .as_object_mut()
        .ok_or_else(|| AgentError::invalid(format!("{what} is not an object")))
}

fn adapt_linux(json: &mut Value, container_id: &str) -> Result<()> {
    let spec = object(json, "The OCI spec")?;
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    let linux = object(linux, "linux")?;
    let empty =
        |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().is_empty();
    if empty(linux.get("cgroupsPath")) {
        linux.insert("cgroupsPath".to_owned(), json!(format!("/{container_id}")));
    }
    // The library knows "shared", not "rshared", and means the recursive kind by it.
    if let Some(propagation) = linux.get("rootfsPropagation").and_then(Value::as_str) {
        let plain = match propagation {
            "rshared" | "rslave" | "rprivate" | "runbindable" => &propagation[1..],
            other => other,
        };
        let plain = json!(plain);
        linux.insert("rootfsPropagation".to_owned(), plain);
    }
    // A kernel without swap has no memory.swap.max to write a limit to, and nothing to limit.
    if !Path::new("/proc/swaps").exists()
        && let Some(memory) = linux
            .get_mut("resources")
            .and_then(|resources| resources.get_mut("memory"))
            .and_then(Value::as_object_mut)
    {
        memory.remove("swap");
        memory.remove("swappiness");
    }
    Ok(())
}

/// Options of the runtime spec that the library would hand to the file system, which knows nothing of them.
fn adapt_mounts(json: &mut Value) {
    let mounts = json.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) else {
            continue;
        };
        // About kernel log lines and NFS change counters: nothing that a container could observe.
        options.retain(|option| {
            !matches!(
                option.as_str(),
                Some("loud" | "silent" | "iversion" | "noiversion")
            )
        });
        for option in options {
            // The library has the recursive form only; on a mount without others below it, it is the same.
            match option.as_str() {
                Some("nosymfollow") => *option = json!("rnosymfollow"),
                Some("symfollow") => *option = json!("rsymfollow"),
                _ => {}
            }
        }
    }
}

fn adapt_process(
    process: &mut Value,
    wanted: &Wanted,
    home: impl FnOnce(u32) -> Option<String>,
) -> Result<()> {
    let (uid, _) = owner(process);
    let process = object(process, "process")?;
    process.insert("terminal".to_owned(), json!(wanted.terminal));
    // The size goes to the helper; the library ignores it.
    process.remove("consoleSize");
    // The library takes "false" for "set" when it decides when to load seccomp.
    if process.get("noNewPrivileges") == Some(&json!(false)) {
        process.remove("noNewPrivileges");
    }
    if process
        .get("args")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        return Err(AgentError::invalid("process.args is empty"));
    }
    let env = process.entry("env").or_insert_with(|| json!([]));
    if env.is_null() {
        *env = json!([]);
    }
    let env = env
        .as_array_mut()
        .ok_or_else(|| AgentError::invalid("process.env is not a list"))?;
    let has_home = env.iter().any(|entry| {
        entry
            .as_str()
            .and_then(|entry| entry.strip_prefix("HOME="))
            .is_some_and(|value| !value.is_empty())
    });
    // Without HOME the library asks the C library, which in a static program would load modules out of the
    // container's own files.
    if !has_home && let Some(home) = home(uid) {
        env.push(json!(format!("HOME={home}")));
    }
    Ok(())
}

/// The user's home by the container's /etc/passwd, "/" when it is not there.
fn home_of(root: &str, uid: u32) -> Option<String> {
    let passwd = read_beneath(root, "/etc/passwd").unwrap_or_default();
    Some(home_in_passwd(&passwd, uid).unwrap_or_else(|| "/".to_owned()))
}

/// passwd(5): `name:password:uid:gid:gecos:home:shell`.
pub fn home_in_passwd(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, _, _, home, ..] = fields[..] else {
            return None;
        };
        (id.parse() == Ok(uid) && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Reads a file inside a root: symbolic links, absolute ones too, stay inside it (openat2 RESOLVE_IN_ROOT).
fn read_beneath(root: &str, path: &str) -> Option<String> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let root = fs::File::open(root).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let raw = openat2(root.as_raw_fd(), path, how).ok()?;
    // SAFETY: openat2 has just made this descriptor; nobody else owns it.
    let file = fs::File::from(unsafe { OwnedFd::from_raw_fd(raw) });
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(terminal: bool) -> Wanted {
        Wanted {
            terminal,
            ..Wanted::default()
        }
    }

    fn root_with_passwd(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("strato-agent-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("etc")).expect("a temporary folder");
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nu:x:7:7::/home/u:\n",
        )
        .expect("passwd");
        root
    }

    #[test]
    fn parse_fills_in_cgroup_home_and_terminal() {
        let root = root_with_passwd("parse");
        let spec = json!({
            "root": {"path": root}, "process": {"args": ["x"], "cwd": "/", "user": {"uid": 7}, "noNewPrivileges": false},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}], "rootfsPropagation": "rslave"}
        });
        let parsed = ContainerSpec::parse("box", spec.to_string().as_bytes(), &wanted(true))
            .expect("a good spec");
        assert_eq!(parsed.json["linux"]["cgroupsPath"], "/box");
        assert_eq!(parsed.json["linux"]["rootfsPropagation"], "slave");
        assert_eq!(parsed.json["process"]["terminal"], true);
        assert_eq!(parsed.json["process"]["env"], json!(["HOME=/home/u"]));
        assert!(parsed.json["process"].get("noNewPrivileges").is_none());
        assert!(!parsed.own_user_namespace);
        assert_eq!(parsed.owner, (7, 0));
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn adapt_mounts_translates_what_the_library_does_not_know() {
        let mut spec = json!({"mounts": [{"options": ["ro", "silent", "nosymfollow"]}, {"destination": "/x"}]});
        adapt_mounts(&mut spec);
        assert_eq!(spec["mounts"][0]["options"], json!(["ro", "rnosymfollow"]));
        adapt_mounts(&mut json!({"mounts": 3}));
    }

    #[test]
    fn parse_names_what_is_wrong() {
        let root = std::env::temp_dir();
        let cases = [
            (json!({}), "root.path"),
            (
                json!({"root": {"path": "/no/such/place"}}),
                "/no/such/place",
            ),
            (json!({"root": {"path": root}}), "process"),
            (
                json!({"root": {"path": root}, "process": {"args": []}}),
                "process.args",
            ),
            (json!({"root": {"path": root}, "process": []}), "process"),
            (json!({"root": {"path": root}, "linux": 3}), "linux"),
        ];
        for (spec, word) in cases {
            let error = ContainerSpec::parse("box", spec.to_string().as_bytes(), &wanted(false))
                .expect_err("refused");
            assert!(error.message.contains(word), "{spec}: {}", error.message);
        }
        assert!(ContainerSpec::parse("box", b"{", &wanted(false)).is_err());
    }

    #[test]
    fn read_beneath_does_not_leave_the_root() {
        let root = root_with_passwd("beneath");
        fs::write(root.join("secret"), "").expect("a file");
        let inner = root.join("inner");
        fs::create_dir_all(inner.join("etc")).expect("a folder");
        std::os::unix::fs::symlink("../../../../secret", inner.join("etc/passwd")).expect("a link");
        let inner_text = inner.to_str().expect("utf-8");
        assert_eq!(read_beneath(inner_text, "/etc/passwd"), None);
        fs::write(inner.join("secret"), "mine").expect("a file");
        assert_eq!(
            read_beneath(inner_text, "/etc/passwd").as_deref(),
            Some("mine")
        );
        fs::remove_dir_all(root).expect("clean up");
    }

    #[test]
    fn home_in_passwd_survives_broken_lines() {
        let passwd = "x\n::::\nroot:x:0:0:root:/root:/bin/sh\n";
        assert_eq!(home_in_passwd(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in_passwd(passwd, 1), None);
    }
}
