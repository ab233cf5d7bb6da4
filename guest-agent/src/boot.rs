//! What PID 1 does before it speaks: file systems, a root that containers can pivot away from, cgroups, limits. And
//! what it does while the host is reading its hello: `lo` and the sandbox's network namespace. System calls only;
//! nothing here forks.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot};

use crate::errors::{Context, Result};
use crate::{console, network, paths};

/// Open files that containers may have without asking (as under containerd's own limits).
const OPEN_FILES: u64 = 1_048_576;

struct Mount {
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOTHING_SPECIAL: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

const MOUNTS: &[Mount] = &[
    Mount {
        target: "/dev",
        fstype: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        data: "mode=0755",
    },
    Mount {
        target: "/proc",
        fstype: "proc",
        flags: NOTHING_SPECIAL,
        data: "",
    },
    Mount {
        target: "/sys",
        fstype: "sysfs",
        flags: NOTHING_SPECIAL,
        data: "",
    },
    Mount {
        target: "/dev/pts",
        fstype: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=0620,gid=5,ptmxmode=0666",
    },
    Mount {
        target: "/dev/shm",
        fstype: "tmpfs",
        flags: NOTHING_SPECIAL,
        data: "mode=1777",
    },
    Mount {
        target: "/run",
        fstype: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=0755",
    },
    Mount {
        target: "/tmp",
        fstype: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777",
    },
    Mount {
        target: paths::CGROUP_ROOT,
        fstype: "cgroup2",
        flags: NOTHING_SPECIAL,
        data: "",
    },
];

/// Prepares the guest. Parts that a container may do without are only warned about.
pub fn prepare() -> Result<()> {
    make_root_pivotable().context("Moving a bind mount of the root over it")?;
    for entry in MOUNTS {
        let mounted = mount_one(entry);
        if entry.target == "/dev" {
            console::attach();
        }
        if let Err(error) = mounted {
            crate::warning!("{error}");
        }
    }
    for directory in [paths::CONTAINERS, paths::OCI_STATE, paths::SHARES] {
        fs::create_dir_all(directory).with_context(|| format!("Creating {directory}"))?;
    }
    soften(enable_controllers());
    soften(
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
            .context("Raising the limit of open files"),
    );
    Ok(())
}

/// The network's part, for which the first request of the host has to wait.
pub fn prepare_network() -> Result<()> {
    soften(network::loopback_up());
    make_sandbox_netns()
}

fn soften(result: Result<()>) {
    if let Err(error) = result {
        crate::warning!("{error}");
    }
}

fn mount_one(entry: &Mount) -> Result<()> {
    fs::create_dir_all(entry.target).with_context(|| format!("Creating {}", entry.target))?;
    mount(
        Some(entry.fstype),
        entry.target,
        Some(entry.fstype),
        entry.flags,
        Some(entry.data),
    )
    .with_context(|| format!("Mounting {} on {}", entry.fstype, entry.target))
}

/// The initramfs is the kernel's own first mount, which pivot_root(2) refuses to leave. A bind mount of it moved on
/// top of it is an ordinary mount.
fn make_root_pivotable() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let place = "/run";
    let _ = fs::create_dir_all(place);
    mount(Some("/"), place, NONE, MsFlags::MS_BIND, NONE)?;
    chdir(place)?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
    chroot(".")?;
    chdir("/")
}

/// Gives every controller of the kernel to the cgroups below the root.
fn enable_controllers() -> Result<()> {
    let root = Path::new(paths::CGROUP_ROOT);
    let available = fs::read_to_string(root.join("cgroup.controllers"))
        .context("Reading the cgroup controllers")?;
    let request = available
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect::<Vec<_>>()
        .join(" ");
    fs::write(root.join("cgroup.subtree_control"), &request)
        .with_context(|| format!("Enabling the cgroup controllers {request}"))
}

/// Makes the network namespace that the sandbox's containers join, with `lo` up. Spare NICs stay in the agent's.
fn make_sandbox_netns() -> Result<()> {
    const NONE: Option<&str> = None;
    let own = File::open("/proc/self/ns/net").context("Opening the agent's network namespace")?;
    unshare(CloneFlags::CLONE_NEWNET).context("Making the sandbox's network namespace")?;
    let made = network::loopback_up().and_then(|()| {
        File::create(paths::NETNS).with_context(|| format!("Creating {}", paths::NETNS))?;
        mount(
            Some("/proc/self/ns/net"),
            paths::NETNS,
            NONE,
            MsFlags::MS_BIND,
            NONE,
        )
        .with_context(|| format!("Keeping the network namespace at {}", paths::NETNS))
    });
    let back = setns(&own, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("Returning to network namespace {}", own.as_raw_fd()));
    made.and(back)
}
