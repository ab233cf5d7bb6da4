//! Reading of a file into guest memory.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::{Address, Bytes, GuestAddress};

/// An untrusted file of known length. What is read is copied once; a file that shrinks meanwhile is an error.
pub struct Image<'a> {
    file: &'a File,
    what: &'static str,
    len: u64,
}

impl<'a> Image<'a> {
    /// # Errors
    /// It cannot be asked for its length, or is empty, as everything but a file and a disk is.
    pub fn new(file: &'a File, what: &'static str) -> Result<Self> {
        let mut end = file;
        // Disks have no length in stat(2).
        let len = end
            .seek(SeekFrom::End(0))
            .map_err(|error| io_failure(format!("Cannot find out how long the {what} is"), &error))?;
        if len == 0 {
            return Err(Failure::refused(format!("The {what} is empty")));
        }
        Ok(Self { file, what, len })
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `data` from `offset` on; `part` names it in the error.
    ///
    /// # Errors
    /// The file ends before.
    pub fn read(&self, part: &str, offset: u64, data: &mut [u8]) -> Result<()> {
        self.check(part, offset, data.len() as u64)?;
        self.file
            .read_exact_at(data, offset)
            .map_err(|error| io_failure(format!("Cannot read the {part} of the {}", self.what), &error))
    }

    /// Copies `len` bytes from `offset` on into guest memory at `addr`.
    ///
    /// # Errors
    /// The file ends before, or there is no such RAM.
    pub fn load(&self, ram: &GuestRam, part: &str, offset: u64, len: u64, addr: u64) -> Result<()> {
        self.check(part, offset, len)?;
        let what = self.what;
        let mut source = self.file;
        source
            .seek(SeekFrom::Start(offset))
            .map_err(|error| io_failure(format!("Cannot find the {part} of the {what}"), &error))?;
        let mut done = 0;
        while done < len {
            let at = GuestAddress(addr).unchecked_add(done);
            // One read(2) into guest memory, which may be shorter than asked for.
            let read = ram
                .read_volatile_from(at, &mut source, usize::try_from(len - done).unwrap_or(usize::MAX))
                .map_err(|error| {
                    Failure::refused(format!("Cannot read the {part} of the {what} to {:#x}: {error}", at.0))
                })?;
            if read == 0 {
                return Err(self.too_short(part, offset, len, offset + done));
            }
            done += read as u64;
        }
        Ok(())
    }

    fn check(&self, part: &str, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.too_short(part, offset, len, self.len)),
        }
    }

    fn too_short(&self, part: &str, offset: u64, len: u64, end: u64) -> Failure {
        Failure::refused(format!(
            "The {} ends after {end} bytes, but its {part} is {len} bytes at {offset}",
            self.what
        ))
    }
}

fn io_failure(what: String, error: &std::io::Error) -> Failure {
    Failure::new(what, error.raw_os_error().unwrap_or(libc::EIO))
}
