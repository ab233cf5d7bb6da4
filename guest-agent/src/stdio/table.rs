//! Which stream ids the host may connect now. A connection is handed to the stream's pump by a channel of one:
//! a second one for the same stream waits its turn or is refused.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::mpsc;

use crate::descriptor::Descriptor;
use crate::sync::lock;

/// Where a pump gets its connections from.
pub type Connections = mpsc::Receiver<Descriptor>;

#[derive(Default)]
pub struct StreamTable {
    waiting: Mutex<HashMap<String, mpsc::Sender<Descriptor>>>,
}

impl StreamTable {
    /// From now on connections for `id` go to the returned receiver.
    pub fn register(&self, id: &str) -> Connections {
        let (sender, receiver) = mpsc::channel(1);
        lock(&self.waiting).insert(id.to_owned(), sender);
        receiver
    }

    pub fn forget(&self, id: &str) {
        lock(&self.waiting).remove(id);
    }

    /// A place for one more connection of the stream; None when it is unknown, over or occupied.
    pub fn reserve(&self, id: &str) -> Option<mpsc::OwnedPermit<Descriptor>> {
        let sender = lock(&self.waiting).get(id).cloned()?;
        sender.try_reserve_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserve_is_refused_for_unknown_occupied_and_forgotten_streams() {
        let table = StreamTable::default();
        assert!(table.reserve("box//stdout").is_none());
        let connections = table.register("box//stdout");
        let permit = table.reserve("box//stdout");
        assert!(permit.is_some());
        assert!(table.reserve("box//stdout").is_none());
        drop(permit);
        assert!(table.reserve("box//stdout").is_some());
        drop(connections);
        assert!(table.reserve("box//stdout").is_none());
        table.forget("box//stdout");
        assert!(table.reserve("box//stdout").is_none());
    }
}
