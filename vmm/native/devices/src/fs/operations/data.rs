//! Operations on open files and their contents. Contents go straight between guest memory and the file.

use std::os::fd::AsRawFd;
use std::{cmp, io};

use strato_virtio::GuestBuffers;

use super::super::backend::Creation;
use super::super::decode::{Errno, MALFORMED};
use super::super::metrics::FsMetrics;
use super::super::server::{Answer, Call, Patience, Server};
use super::super::wire::{IN_HEADER_LEN, MAX_WRITE, OUT_HEADER_LEN, WRITE_IN_LEN, flag, init};

/// Longest piece of one COPY_FILE_RANGE; the guest asks again for the rest. It bounds how long a device that
/// is to stand still has to wait.
const MAX_COPY: u64 = 64 << 20;

impl Server {
    pub(in super::super) fn open(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (flags, open_flags) = (call.body.u32()?, call.body.u32()?);
        let kill = open_flags & flag::OPEN_KILL_SUIDGID != 0;
        call.reply.opened(&self.host.open(&caller, call.node(), flags, kill)?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn create(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (flags, new) = creation(call)?;
        let name = call.body.name()?;
        let (entry, opened) = self.host.create(&caller, call.node(), name, flags, new)?;
        call.reply.entry(&entry);
        call.reply.opened(&opened);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn tmpfile(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        // The name that follows is the kernel's stop-gap for a file that has none.
        let (flags, new) = creation(call)?;
        let (entry, opened) = self.host.tmpfile(&caller, call.node(), flags, new)?;
        call.reply.entry(&entry);
        call.reply.opened(&opened);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn read(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (handle, offset, size) = (call.body.u64()?, call.body.u64()?, call.body.u32()?);
        let offset = i64::try_from(offset).map_err(|_| MALFORMED)?;
        let room = call.exchange.chain.writable_len() - OUT_HEADER_LEN as u32;
        let len = size.min(room).min(MAX_WRITE);
        let file = self.host.file(handle)?;
        let fd = file.as_fd().as_raw_fd();
        let mut patience = self.cached_reads.patience(call.patience);
        let mut done = 0;
        while done < len {
            let mut buffers = GuestBuffers::new(call.exchange.ram);
            let at = OUT_HEADER_LEN as u32 + done;
            buffers
                .push_writable(call.exchange.chain, at, (len - done) as usize)
                .map_err(io::Error::other)?;
            let position = offset.checked_add(i64::from(done)).ok_or(MALFORMED)?;
            let outcome = match patience {
                Patience::Waits => buffers.read_file_at(fd, position),
                Patience::CachedOnly => buffers.read_cached_file_at(fd, position),
            };
            match outcome {
                Ok(0) => break,
                Ok(count) => done += count as u32,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) if patience == Patience::CachedOnly => return Ok(Answer::WouldWait),
                    Some(libc::EOPNOTSUPP) if patience == Patience::CachedOnly => {
                        self.cached_reads.refused();
                        patience = Patience::Waits;
                    }
                    _ if done > 0 => break,
                    _ => return Err(error.into()),
                },
            }
        }
        if call.patience == Patience::CachedOnly {
            // Counted here, because one that would have waited comes again.
            self.metrics.count(call.header.opcode);
        }
        FsMetrics::add(&self.metrics.read_bytes, u64::from(done));
        Ok(Answer::Data(done))
    }

    pub(in super::super) fn write(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (handle, offset, size) = (call.body.u64()?, call.body.u64()?, call.body.u32()?);
        let write_flags = call.body.u32()?;
        call.body.u64()?; // lock_owner: mandatory locks are no more
        let file_flags = call.body.u32()?;
        let offset = i64::try_from(offset).map_err(|_| MALFORMED)?;
        let data_at = (IN_HEADER_LEN + WRITE_IN_LEN) as u32;
        if size > MAX_WRITE || call.header.len.checked_sub(data_at) != Some(size) {
            return Err(MALFORMED);
        }
        // With a write-back cache, or for what was mapped, the guest itself knows where the data belong.
        let append = file_flags.cast_signed() & libc::O_APPEND != 0
            && write_flags & flag::WRITE_CACHE == 0
            && !call.agreement.has(init::WRITEBACK_CACHE);
        let file = self.host.file(handle)?;
        let fd = file.as_fd().as_raw_fd();
        let mut write = || {
            let mut done = 0;
            while done < size {
                let mut buffers = GuestBuffers::new(call.exchange.ram);
                let rest = (size - done) as usize;
                buffers.push_readable(call.exchange.chain, data_at + done, rest).map_err(io::Error::other)?;
                let position = offset.checked_add(i64::from(done)).ok_or(io::ErrorKind::InvalidInput)?;
                let outcome =
                    if append { buffers.append_to_file(fd) } else { buffers.write_file_at(fd, position) };
                match outcome {
                    Ok(0) => break,
                    Ok(count) => done += count as u32,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(done as usize)
        };
        let written = if write_flags & flag::WRITE_KILL_SUIDGID != 0 {
            self.host.write_unprivileged(handle, &mut write)?
        } else {
            write()?
        };
        FsMetrics::add(&self.metrics.written_bytes, written as u64);
        call.reply.u32(u32::try_from(written).unwrap_or(u32::MAX));
        call.reply.u32(0);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn release(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let handle = call.body.u64()?;
        self.host.release(handle)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn flush(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let handle = call.body.u64()?;
        call.body.u64()?; // unused, padding
        let owner = call.body.u64()?;
        self.host.flush(handle, owner)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn fsync(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (handle, flags) = (call.body.u64()?, call.body.u32()?);
        self.host.fsync(handle, flags & flag::FSYNC_FDATASYNC != 0)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn fallocate(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (handle, offset, len) = (call.body.u64()?, call.body.u64()?, call.body.u64()?);
        let mode = call.body.u32()?;
        self.host.fallocate(&caller, handle, mode, offset, len)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn lseek(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (handle, offset, whence) = (call.body.u64()?, call.body.u64()?, call.body.u32()?);
        if whence.cast_signed() != libc::SEEK_DATA && whence.cast_signed() != libc::SEEK_HOLE {
            return Err(MALFORMED);
        }
        let found = self.host.lseek(handle, offset, whence)?;
        call.reply.u64(found);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn copy_file_range(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let from = (call.body.u64()?, call.body.u64()?);
        call.body.u64()?; // nodeid_out: the handle says it all
        let to = (call.body.u64()?, call.body.u64()?);
        let (len, flags) = (call.body.u64()?, call.body.u64()?);
        if flags != 0 {
            return Err(MALFORMED);
        }
        let copied = self.host.copy_file_range(&caller, from, to, cmp::min(len, MAX_COPY))?;
        call.reply.u32(u32::try_from(copied).unwrap_or(u32::MAX));
        call.reply.u32(0);
        Ok(Answer::Reply)
    }
}

/// struct fuse_create_in: open flags, and what the new file is to be.
fn creation(call: &mut Call<'_>) -> Result<(u32, Creation), Errno> {
    let (flags, mode, umask) = (call.body.u32()?, call.body.u32()?, call.body.u32()?);
    call.body.u32()?; // open_flags: KILL_SUIDGID means nothing to a new file
    Ok((flags, Creation { mode, umask, rdev: 0 }))
}
