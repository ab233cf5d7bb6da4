//! What a guest may make us hold, and references that do not add up.

use std::fs;

use super::super::{Limits, Passthrough, PassthroughConfig, Root};
use super::fixture::*;
use crate::fs::backend::{HostFs, ROOT_NODE, SessionOptions};

fn small(folder: &Scratch) -> Passthrough {
    let limits = Limits { nodes: 10, handles: 4 };
    let root = Root::Directory(share(folder.path()));
    Passthrough::new(PassthroughConfig { limits, ..PassthroughConfig::new(root).unwrap() }).unwrap()
}

#[test]
fn files_beyond_the_budget_are_enfile_until_some_are_forgotten() {
    let folder = Scratch::new();
    for number in 0..20 {
        fs::write(folder.path().join(number.to_string()), "").unwrap();
    }
    let fs = small(&folder);
    let known: Vec<_> = (0..9).map(|number| fs.walk(&number.to_string()).unwrap().node).collect();
    assert_eq!(code(&fs.walk("9")), libc::ENFILE);
    assert_eq!(fs.walk("3").unwrap().node, known[3], "what is known can be looked up again");
    fs.forget(known[0], 1);
    let ninth = fs.walk("9").unwrap().node;
    assert!(!known.contains(&ninth), "ids are not used again");
    let metrics = fs.metrics().snapshot();
    assert!(metrics.contains(&("nodes_refused", 1)) && metrics.contains(&("nodes", 10)));
}

#[test]
fn open_files_beyond_the_budget_are_emfile() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    let fs = small(&folder);
    let node = fs.walk("a").unwrap().node;
    let handles: Vec<_> = (0..4).map(|_| fs.open_node(node, libc::O_RDONLY).unwrap()).collect();
    assert_eq!(code(&fs.open_node(node, libc::O_RDONLY)), libc::EMFILE);
    assert_eq!(code(&fs.opendir(&root(), ROOT_NODE, 0)), libc::EMFILE);
    let flags = libc::O_RDWR.cast_unsigned();
    assert_eq!(code(&fs.create(&root(), ROOT_NODE, c"new", flags, new(0o644))), libc::EMFILE);
    assert_eq!(code(&fs.tmpfile(&root(), ROOT_NODE, flags, new(0o644))), libc::EMFILE);
    fs.release(handles[0]).unwrap();
    assert_eq!(code(&fs.release(handles[0])), libc::EBADF);
    fs.create(&root(), ROOT_NODE, c"new", flags, new(0o644)).unwrap();
    assert!(fs.metrics().snapshot().contains(&("handles_refused", 4)));
}

#[test]
fn forgetting_more_than_is_held_hurts_only_who_does_it() {
    let folder = Scratch::new();
    fs::write(folder.path().join("a"), "").unwrap();
    let fs = serve(folder.path());
    let node = fs.walk("a").unwrap().node;
    fs.walk("a").unwrap();
    fs.forget(node, 1);
    fs.attributes(node, None).unwrap();
    fs.forget(node, u64::MAX);
    assert_eq!(code(&fs.attributes(node, None)), libc::ESTALE);
    fs.forget(node, 1);
    fs.forget(ROOT_NODE, u64::MAX);
    fs.attributes(ROOT_NODE, None).unwrap();
    assert_ne!(fs.walk("a").unwrap().node, node);
    assert!(fs.metrics().snapshot().contains(&("bad_forgets", 3)));
}

#[test]
fn recycled_inode_number_is_a_new_node() {
    let folder = Scratch::new();
    let path = folder.path().join("a");
    let fs = serve(folder.path());
    let mut seen = std::collections::HashMap::new();
    let mut recycled = 0;
    for round in 0..200_u32 {
        fs::write(&path, round.to_string()).unwrap();
        let entry = fs.walk("a").unwrap();
        assert_eq!(fs.read_node(entry.node).unwrap(), round.to_string().as_bytes());
        recycled +=
            usize::from(seen.insert(entry.attributes.ino, entry.node).is_some_and(|old| old != entry.node));
        fs::remove_file(&path).unwrap();
        // Every second one stays known, so that its number cannot be given away.
        if round % 2 == 0 {
            fs.forget(entry.node, 1);
        }
    }
    eprintln!("{recycled} inode numbers came back");
    fs.begin(SessionOptions::default());
    assert_eq!(fs.levels(), (1, 0));
}
