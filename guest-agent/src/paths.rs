//! Where things are in the guest. Those that the host names too are fixed by the contract of agent.proto.

use std::path::{Path, PathBuf};

/// The cgroup v2 hierarchy.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The sandbox's network namespace, which containers name in their spec.
pub const NETNS: &str = "/run/strato/netns";
/// The file that containers may bind as /etc/resolv.conf.
pub const RESOLV_CONF: &str = "/run/strato/resolv.conf";
/// virtio-fs mounts.
pub const SHARES: &str = "/run/strato/shares";
/// Bundles: one folder per container.
pub const CONTAINERS: &str = "/run/strato/containers";
/// The OCI library's state: one folder per container.
pub const OCI_STATE: &str = "/run/strato/oci";

/// The bundle of a container whose id has been checked.
pub fn bundle(container_id: &str) -> PathBuf {
    Path::new(CONTAINERS).join(container_id)
}

/// The OCI library's folder of a container whose id has been checked.
pub fn oci_state(container_id: &str) -> PathBuf {
    Path::new(OCI_STATE).join(container_id)
}
