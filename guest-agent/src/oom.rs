//! Watches memory.events of every container by one inotify descriptor (the kernel marks the file modified at each
//! change, see cgroup-v2.rst).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::cgroup::Cgroup;
use crate::descriptor::Descriptor;
use crate::errors::{Context, Result};
use crate::sync::lock;

#[derive(Clone)]
pub struct Watch {
    inotify: Arc<Inotify>,
    watched: Arc<Mutex<HashMap<WatchDescriptor, String>>>,
}

impl Watch {
    pub fn new() -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("Making an inotify descriptor")?;
        Ok(Self {
            inotify: Arc::new(inotify),
            watched: Arc::default(),
        })
    }

    /// From now on changes are told; a kernel without memory control has none.
    pub fn add(&self, container_id: &str, cgroup: &Cgroup) {
        if let Ok(watch) = self
            .inotify
            .add_watch(&cgroup.memory_events(), AddWatchFlags::IN_MODIFY)
        {
            lock(&self.watched).insert(watch, container_id.to_owned());
        }
    }

    /// The watch itself goes with its file.
    pub fn remove(&self, container_id: &str) {
        lock(&self.watched).retain(|_, id| id != container_id);
    }

    /// Calls `changed` with the container's id at each change, for the life of the agent.
    pub async fn run(self, changed: impl Fn(&str)) {
        let Ok(poll) = self.poll_descriptor() else {
            crate::warning!("Out-of-memory events are not watched");
            return;
        };
        loop {
            let read = poll
                .when_readable(|_| self.inotify.read_events().map_err(errno_to_io))
                .await;
            let Ok(events) = read else {
                return;
            };
            for event in events {
                let id = lock(&self.watched).get(&event.wd).cloned();
                if let Some(id) = id {
                    changed(&id);
                }
            }
        }
    }

    fn poll_descriptor(&self) -> io::Result<Descriptor> {
        let copy: OwnedFd = self.inotify.as_fd().try_clone_to_owned()?;
        debug_assert!(copy.as_raw_fd() >= 0);
        Descriptor::new(copy)
    }
}

fn errno_to_io(errno: Errno) -> io::Error {
    errno.into()
}
