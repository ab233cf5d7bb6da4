//! Locks on the host's files, for guests that share them with others. Linux keeps locks to itself unless
//! they were agreed on.

use super::super::backend::RecordLock;
use super::super::decode::{Errno, MALFORMED};
use super::super::server::{Answer, Call, Server};
use super::super::wire::{flag, init};

/// struct fuse_lk_in
struct LockRequest {
    handle: u64,
    owner: u64,
    lock: RecordLock,
    flock: bool,
}

impl LockRequest {
    fn parse(call: &mut Call<'_>) -> Result<Self, Errno> {
        let body = &mut call.body;
        let (handle, owner) = (body.u64()?, body.u64()?);
        let (start, end) = (body.u64()?, body.u64()?);
        let (kind, pid, flags) = (body.u32()?, body.u32()?, body.u32()?);
        let kind = i32::try_from(kind).map_err(|_| MALFORMED)?;
        if ![libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&kind) || start > end {
            return Err(MALFORMED);
        }
        let lock = RecordLock { kind, start, end, pid };
        Ok(Self { handle, owner, lock, flock: flags & flag::LK_FLOCK != 0 })
    }
}

impl Server {
    pub(in super::super) fn getlk(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        if !call.agreement.has(init::POSIX_LOCKS) {
            return Err(Errno(libc::ENOSYS));
        }
        let request = LockRequest::parse(call)?;
        let found = self.host.get_lock(request.handle, request.owner, request.lock)?;
        call.reply.u64(found.start);
        call.reply.u64(found.end);
        call.reply.u32(found.kind.cast_unsigned());
        call.reply.u32(found.pid);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn setlk(&self, call: &mut Call<'_>, wait: bool) -> Result<Answer, Errno> {
        let request = LockRequest::parse(call)?;
        let agreed = if request.flock { init::FLOCK_LOCKS } else { init::POSIX_LOCKS };
        if !call.agreement.has(agreed) {
            return Err(Errno(libc::ENOSYS));
        }
        if request.flock {
            let operation = match request.lock.kind {
                libc::F_RDLCK => libc::LOCK_SH,
                libc::F_WRLCK => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            self.host.flock(request.handle, operation, wait)?;
        } else {
            self.host.set_lock(request.handle, request.owner, request.lock, wait)?;
        }
        Ok(Answer::Reply)
    }
}
