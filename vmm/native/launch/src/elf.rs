//! What the dynamic loader will look for on behalf of a program or library (elf(5), ld.so(8)).
//!
//! The files are the host's own, named by the caller; a broken one is an error in words all the same.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Failure, Result};

// elf.h
const EI_CLASS: usize = 4;
const ELFCLASS64: u8 = 2;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What the kernel reads of a script's first line (BINPRM_BUF_SIZE of linux/binfmts.h).
const FIRST_LINE: usize = 256;

/// Sizes of Elf64_Ehdr, Elf64_Phdr and Elf64_Dyn.
const HEADER: usize = 64;
const SEGMENT: usize = 56;
const DYNAMIC: usize = 16;

/// More than any real file has of it.
const MAX_PART: u64 = 16 << 20;

/// The loader's instructions in one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The loader itself (PT_INTERP), or what a script names in its first line; libraries have none.
    pub interpreter: Option<String>,
    /// Names of libraries (DT_NEEDED).
    pub libraries: Vec<String>,
    /// Folders to search, as written (DT_RUNPATH, or else DT_RPATH).
    pub folders: Vec<String>,
}

/// Reads the needs of the file at `path`; a statically linked program has none. What a script runs is its
/// own affair.
///
/// # Errors
/// The file cannot be read, or is neither a 64-bit ELF file nor a script.
pub fn needs(path: &str) -> Result<Needs> {
    let file = File::open(path)
        .map_err(|e| Failure::new(format!("Cannot open program {path}"), e.raw_os_error().unwrap_or(0)))?;
    Reader { file, path }.needs()
}

struct Reader<'a> {
    file: File,
    path: &'a str,
}

/// One program header.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

impl Reader<'_> {
    fn needs(&self) -> Result<Needs> {
        if let Some(interpreter) = self.script()? {
            return Ok(Needs { interpreter: Some(interpreter), ..Needs::default() });
        }
        let segments = self.segments()?;
        let mut needs = Needs::default();
        if let Some(segment) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
            let text = self.part(segment.offset, segment.size)?;
            needs.interpreter = Some(string(&text, 0).ok_or_else(|| self.broken())?);
        }
        if let Some(segment) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) {
            self.read_dynamic(&segments, segment, &mut needs)?;
        }
        Ok(needs)
    }

    fn script(&self) -> Result<Option<String>> {
        let mut line = [0; FIRST_LINE];
        let count = self.file.read_at(&mut line, 0).map_err(|_| self.broken())?;
        let text = line.get(..count).unwrap_or_default().strip_prefix(b"#!");
        let words = text.and_then(|text| text.split(|byte| *byte == b'\n').next());
        let first = words.and_then(|words| words.trim_ascii().split(|byte| *byte == b' ').next());
        Ok(first.map(|word| String::from_utf8_lossy(word).into_owned()))
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        let header = self.part(0, HEADER as u64)?;
        if !header.starts_with(b"\x7fELF") || header.get(EI_CLASS) != Some(&ELFCLASS64) {
            return Err(Failure::refused(format!("File {} is no program or library", self.path)));
        }
        let (table, count) = (word(&header, 32), half(&header, 56));
        let table = self.part(table.ok_or_else(|| self.broken())?, u64::from(count) * SEGMENT as u64)?;
        let segment = |bytes: &[u8]| {
            let kind = word(bytes, 0)? as u32;
            Some(Segment { kind, offset: word(bytes, 8)?, address: word(bytes, 16)?, size: word(bytes, 32)? })
        };
        table.chunks_exact(SEGMENT).map(|bytes| segment(bytes).ok_or_else(|| self.broken())).collect()
    }

    fn read_dynamic(&self, segments: &[Segment], dynamic: &Segment, needs: &mut Needs) -> Result<()> {
        let table = self.part(dynamic.offset, dynamic.size)?;
        let entries: Vec<(u64, u64)> = table
            .chunks_exact(DYNAMIC)
            .filter_map(|entry| Some((word(entry, 0)?, word(entry, 8)?)))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let value = |wanted: u64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(()) };
        let strings = self.part(self.offset_of(segments, address)?, size)?;
        let text = |offset: u64| string(&strings, offset).ok_or_else(|| self.broken());
        for (_, offset) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
            needs.libraries.push(text(*offset)?);
        }
        if let Some(offset) = value(DT_RUNPATH).or(value(DT_RPATH)) {
            needs.folders = text(offset)?.split(':').map(str::to_owned).collect();
        }
        Ok(())
    }

    fn offset_of(&self, segments: &[Segment], address: u64) -> Result<u64> {
        let inside = |segment: &&Segment| {
            segment.kind == PT_LOAD && address.checked_sub(segment.address).is_some_and(|d| d < segment.size)
        };
        let segment = segments.iter().find(inside).ok_or_else(|| self.broken())?;
        Ok(segment.offset + (address - segment.address))
    }

    fn part(&self, offset: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_PART {
            return Err(self.broken());
        }
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|_| self.broken())?;
        Ok(bytes)
    }

    fn broken(&self) -> Failure {
        Failure::refused(format!("File {} is cut off, or no program or library", self.path))
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], offset: usize) -> u16 {
    let pair = bytes.get(offset..offset + 2).and_then(|pair| pair.try_into().ok());
    pair.map_or(0, u16::from_ne_bytes)
}

/// The string that begins at `offset` and ends with NUL.
fn string(bytes: &[u8], offset: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(offset).ok()?..)?;
    let text = rest.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_of_this_very_program_are_what_the_linker_wrote() {
        let own = std::env::current_exe().unwrap();
        let needs = needs(own.to_str().unwrap()).unwrap();
        assert!(needs.interpreter.is_none_or(|path| path.contains("ld-")));
        assert!(needs.libraries.is_empty() || needs.libraries.iter().any(|name| name.starts_with("libc.so")));
    }

    #[test]
    fn needs_of_a_script_are_what_its_first_line_names() {
        let path = std::env::temp_dir().join(format!("strato-elf-{}", std::process::id()));
        std::fs::write(&path, "#! /bin/sh -e\ntrue\n").unwrap();
        let found = needs(path.to_str().unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found, Needs { interpreter: Some("/bin/sh".into()), ..Needs::default() });
    }

    #[test]
    fn needs_refuses_what_is_no_program() {
        assert!(needs("/nonexistent").unwrap_err().to_string().contains("No such file"));
        assert!(needs("/etc/passwd").unwrap_err().to_string().contains("/etc/passwd is no program"));
        assert!(needs("/dev/null").unwrap_err().to_string().contains("/dev/null is cut off"));
    }
}
