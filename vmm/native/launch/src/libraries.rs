//! Every file that the dynamic loader opens to start a program: the loader, the libraries, and theirs.
//!
//! The search follows ld.so(8) as far as it depends on files: the folders that a file names itself, the
//! loader's cache, the default folders. Names stay as the loader will spell them, symbolic links included.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::path::Path;

use crate::elf;
use crate::{Failure, Result};

const CACHE: &str = "/etc/ld.so.cache";
const DEFAULT_FOLDERS: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Returns the programs and libraries at `paths` and all that loading them takes, each file once.
///
/// # Errors
/// A file is no program, or a library is nowhere to be found.
pub fn closure<'a>(paths: impl IntoIterator<Item = &'a CString>) -> Result<BTreeSet<CString>> {
    let mut search = Search::default();
    for path in paths {
        search.add(path.to_string_lossy().into_owned(), &[])?;
    }
    if !search.found.is_empty() && Path::new(CACHE).exists() {
        search.found.insert(CACHE.into());
    }
    search.found.into_iter().map(|path| CString::new(path).map_err(|_| nul())).collect()
}

#[derive(Default)]
struct Search {
    found: BTreeSet<String>,
    cache: Option<HashMap<String, String>>,
}

impl Search {
    /// Adds a file and what it needs. `inherited` are the folders that whoever needs it has named.
    fn add(&mut self, path: String, inherited: &[String]) -> Result<()> {
        if self.found.contains(&path) {
            return Ok(());
        }
        let needs = elf::needs(&path)?;
        let origin = Path::new(&path).canonicalize().ok();
        let origin = origin.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"));
        let expand = |folder: &String| {
            folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", &origin.to_string_lossy())
        };
        let mut folders: Vec<String> = needs.folders.iter().map(expand).collect();
        folders.extend_from_slice(inherited);
        self.found.insert(path.clone());
        if let Some(interpreter) = needs.interpreter {
            self.add(interpreter, &[])?;
        }
        for name in needs.libraries {
            let library = self.find(&name, &folders).ok_or_else(|| {
                Failure::refused(format!("Library {name} of {path} is in none of the loader's folders"))
            })?;
            self.add(library, &folders)?;
        }
        Ok(())
    }

    fn find(&mut self, name: &str, folders: &[String]) -> Option<String> {
        if name.contains('/') {
            return Some(name.to_owned());
        }
        let there = |folder: &str| {
            let path = format!("{folder}/{name}");
            Path::new(&path).exists().then_some(path)
        };
        if let Some(path) = folders.iter().find_map(|folder| there(folder)) {
            return Some(path);
        }
        let cache = self.cache.get_or_insert_with(|| read_cache(&std::fs::read(CACHE).unwrap_or_default()));
        let cached = cache.get(name).filter(|path| Path::new(path).exists()).cloned();
        cached.or_else(|| DEFAULT_FOLDERS.iter().find_map(|folder| there(folder)))
    }
}

/// Reads the loader's cache: name to path, for this machine's plain kind of library.
///
/// The format is glibc's sysdeps/generic/dl-cache.h (struct cache_file_new). Another one gives nothing: what
/// the default folders hold is found all the same.
fn read_cache(bytes: &[u8]) -> HashMap<String, String> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    // FLAG_ELF_LIBC6 with FLAG_X8664_LIB64 or FLAG_AARCH64_LIB64
    const KIND: u32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };
    let number = |offset: usize| {
        let bytes = bytes.get(offset..offset + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let text = |offset: u32| {
        let text = bytes.get(offset as usize..)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let entry = |index: usize| {
        let start = HEADER + index * ENTRY;
        // Variants for newer processors lie beside the plain file, which the loader takes when they are not there.
        let plain = number(start)? == KIND && number(start + 16)? == 0 && number(start + 20)? == 0;
        plain.then_some((text(number(start + 4)?)?, text(number(start + 8)?)?))
    };
    let mut found = HashMap::new();
    if bytes.starts_with(MAGIC) {
        let count = number(MAGIC.len()).unwrap_or(0).min(1 << 20);
        for (name, path) in (0..count as usize).filter_map(entry) {
            found.entry(name).or_insert(path);
        }
    }
    found
}

fn nul() -> Failure {
    Failure::refused("A library's path contains a NUL byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Vec<String> {
        let paths: Vec<CString> = paths.iter().map(|path| CString::new(*path).unwrap()).collect();
        closure(&paths).unwrap().iter().map(|path| path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn closure_holds_the_loader_and_the_c_library() {
        let found = names(&["/bin/sh"]);
        assert!(found.contains(&"/bin/sh".to_owned()));
        assert!(found.iter().any(|path| path.contains("/ld-")), "{found:?}");
        assert!(found.iter().any(|path| path.contains("/libc.so")), "{found:?}");
    }

    #[test]
    fn closure_of_nothing_is_nothing() {
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn missing_library_is_named() {
        let mut search = Search::default();
        assert_eq!(search.find("libfrobnicate.so.7", &[]), None);
    }

    #[test]
    fn foreign_caches_give_nothing() {
        assert!(read_cache(b"").is_empty());
        assert!(read_cache(b"ld.so-1.7.0").is_empty());
        assert!(read_cache(b"glibc-ld.so.cache1.1\xff\xff\xff\xff").is_empty());
    }
}
