//! A container's cgroup: figures, freezing, killing, out-of-memory counts. Limits are the OCI library's work.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::errors::{AgentError, Context, ErrorKind, Result};
use crate::paths;
use crate::proto::agent::{CpuStats, IoStats, MemoryStats, PidsStats};

/// Freezing and emptying take this long at most; processes in uninterruptible sleep can hold them up.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A cgroup of this container alone.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// From the spec's cgroupsPath, which is taken relative to the root and may not climb out of it.
    pub fn from_spec_path(cgroups_path: &str) -> Result<Self> {
        let relative = Path::new(cgroups_path.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if relative.as_os_str().is_empty() || !plain {
            return Err(AgentError::invalid(format!(
                "linux.cgroupsPath {cgroups_path:?} is not a path below the cgroup root"
            )));
        }
        Ok(Self {
            directory: Path::new(paths::CGROUP_ROOT).join(relative),
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn memory_events(&self) -> PathBuf {
        self.directory.join("memory.events")
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.directory.join(file))
    }

    /// Flat keyed file as a map; empty when it is not there.
    fn keyed(&self, file: &str) -> HashMap<String, u64> {
        self.read(file)
            .map_or_else(|_| HashMap::new(), |text| parse_keyed(&text))
    }

    fn number(&self, file: &str) -> u64 {
        self.read(file).map_or(0, |text| parse_number(&text))
    }

    /// Times the kernel killed a process of this cgroup for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.keyed("memory.events")
            .get("oom_kill")
            .copied()
            .unwrap_or(0)
    }

    /// Pids of all processes, those of cgroups that the container made below its own included.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut directories = vec![self.directory.clone()];
        while let Some(directory) = directories.pop() {
            if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
            directories.extend(subdirectories(&directory));
        }
        pids
    }

    /// SIGKILL to every process, also frozen ones and those that fork meanwhile.
    pub fn kill_all(&self) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.kill"), "1")
    }

    pub fn is_frozen(&self) -> bool {
        self.number("cgroup.freeze") == 1
    }

    /// Freezes or thaws, and waits until the kernel says that it is done.
    pub async fn freeze(&self, frozen: bool) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        fs::write(self.directory.join("cgroup.freeze"), value)
            .with_context(|| format!("Writing {value} to cgroup.freeze"))?;
        if self.wait_for("frozen", u64::from(frozen)).await {
            return Ok(());
        }
        if frozen {
            let _ = fs::write(self.directory.join("cgroup.freeze"), "0");
        }
        Err(AgentError::new(
            ErrorKind::DeadlineExceeded,
            format!("The cgroup did not freeze within {PATIENCE:?}"),
        ))
    }

    /// Waits for a value in cgroup.events; a cgroup that is gone has every value.
    async fn wait_for(&self, key: &str, value: u64) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read("cgroup.events") {
                Err(_) => return true,
                Ok(text) if parse_keyed(&text).get(key) == Some(&value) => return true,
                Ok(_) if Instant::now() >= deadline => return false,
                Ok(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Kills what is left and removes the cgroup with those below it.
    pub async fn remove(&self) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _ = self.kill_all();
        if !self.wait_for("populated", 0).await {
            return Err(AgentError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "Processes {:?} did not end within {PATIENCE:?}",
                    self.pids()
                ),
            ));
        }
        remove_tree(&self.directory)
            .with_context(|| format!("Removing cgroup {}", self.directory.display()))
    }

    pub fn cpu_stats(&self) -> CpuStats {
        let stat = self.keyed("cpu.stat");
        let get = |key: &str| stat.get(key).copied().unwrap_or(0);
        CpuStats {
            usage_usec: get("usage_usec"),
            user_usec: get("user_usec"),
            system_usec: get("system_usec"),
            nr_periods: get("nr_periods"),
            nr_throttled: get("nr_throttled"),
            throttled_usec: get("throttled_usec"),
            ..Default::default()
        }
    }

    pub fn memory_stats(&self) -> MemoryStats {
        MemoryStats {
            usage: self.number("memory.current"),
            usage_limit: self.number("memory.max"),
            swap_usage: self.number("memory.swap.current"),
            swap_limit: self.number("memory.swap.max"),
            peak: self.number("memory.peak"),
            stat: self.keyed("memory.stat"),
            events: self.keyed("memory.events"),
            ..Default::default()
        }
    }

    pub fn pids_stats(&self) -> PidsStats {
        PidsStats {
            current: self.number("pids.current"),
            // The contract's word for "max".
            limit: Some(self.number("pids.max"))
                .filter(|limit| *limit != u64::MAX)
                .unwrap_or(0),
            ..Default::default()
        }
    }

    pub fn io_stats(&self) -> Vec<IoStats> {
        self.read("io.stat")
            .map_or_else(|_| Vec::new(), |text| parse_io(&text))
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for below in subdirectories(directory) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// cgroup v2's single values; "max" is 2^64-1.
fn parse_number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn parse_keyed(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn parse_io(text: &str) -> Vec<IoStats> {
    text.lines()
        .filter_map(|line| {
            let (device, values) = line.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let mut stats = IoStats {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..Default::default()
            };
            for (key, value) in values.split(' ').filter_map(|pair| pair.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => stats.rbytes = value,
                    "wbytes" => stats.wbytes = value,
                    "rios" => stats.rios = value,
                    "wios" => stats.wios = value,
                    _ => {}
                }
            }
            Some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_spec_path_stays_below_the_root() {
        let cgroup = Cgroup::from_spec_path("/box").expect("a plain path");
        assert_eq!(cgroup.directory(), Path::new("/sys/fs/cgroup/box"));
        for path in ["", "/", "../x", "/a/../../b"] {
            assert!(Cgroup::from_spec_path(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn parse_number_knows_max() {
        assert_eq!(parse_number("max\n"), u64::MAX);
        assert_eq!(parse_number("123\n"), 123);
        assert_eq!(parse_number("?"), 0);
    }

    #[test]
    fn parse_keyed_reads_flat_files() {
        let map = parse_keyed("low 0\noom_kill 2\nbroken\n");
        assert_eq!(map.get("oom_kill"), Some(&2));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn parse_io_reads_devices() {
        let stats = parse_io("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nbad\n");
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].major, stats[0].minor), (254, 0));
        assert_eq!((stats[0].rbytes, stats[0].wios), (1, 4));
    }
}
