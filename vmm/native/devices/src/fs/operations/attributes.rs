//! Operations on what is known of a file: its attributes, extended ones, its file system.

use std::ffi::CStr;

use super::super::backend::{AttributeChange, HandleId, NewTime};
use super::super::decode::Errno;
use super::super::init::Agreement;
use super::super::server::{Answer, Call, Server};
use super::super::wire::{XATTR_NAME_MAX, XATTR_SIZE_MAX, fattr, flag, init};

impl Server {
    pub(in super::super) fn getattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let handle = optional_handle(call)?;
        let (attributes, timeout) = self.host.attributes(call.node(), handle)?;
        call.reply.attributes_out(&attributes, timeout);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn statx(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let handle = optional_handle(call)?;
        let (attributes, timeout) = self.host.attributes(call.node(), handle)?;
        call.reply.statx_out(&attributes, timeout);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn setattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let body = &mut call.body;
        let valid = body.u32()?;
        body.u32()?; // padding
        let (handle, size) = (body.u64()?, body.u64()?);
        body.u64()?; // lock_owner: mandatory locks are no more
        let (atime, mtime) = (body.u64()?, body.u64()?);
        body.u64()?; // ctime: the host keeps its own
        let (atime_nanoseconds, mtime_nanoseconds) = (body.u32()?, body.u32()?);
        body.u32()?; // ctimensec
        let mode = body.u32()?;
        body.u32()?; // unused4
        let (uid, gid) = (body.u32()?, body.u32()?);
        let has = |bit| valid & bit != 0;
        let time = |bit, now, seconds: u64, nanoseconds| match (has(bit), has(now)) {
            (false, _) => None,
            (true, true) => Some(NewTime::Now),
            (true, false) => Some(NewTime::At(seconds as i64, nanoseconds)),
        };
        let change = AttributeChange {
            mode: has(fattr::MODE).then_some(mode),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            size: has(fattr::SIZE).then_some(size),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanoseconds),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanoseconds),
            kill_privileges: has(fattr::KILL_SUIDGID),
        };
        let handle = has(fattr::FH).then_some(handle);
        let (attributes, timeout) = self.host.set_attributes(&caller, call.node(), handle, &change)?;
        call.reply.attributes_out(&attributes, timeout);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn access(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let mask = call.body.u32()?;
        self.host.access(&caller, call.node(), mask)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn statfs(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        call.reply.statistics(&self.host.statfs(call.node())?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn syncfs(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        self.host.syncfs(call.node())?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn setxattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (size, flags) = (call.body.u32()? as usize, call.body.u32()?);
        let more = extended_flags(call, call.agreement)?;
        let name = attribute_name(call)?;
        if size > XATTR_SIZE_MAX {
            return Err(Errno(libc::E2BIG));
        }
        let value = call.body.bytes(size)?;
        let clear_setgid = more & flag::SETXATTR_ACL_KILL_SGID != 0;
        self.host.setxattr(&caller, call.node(), name, value, flags, clear_setgid)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn getxattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let size = call.body.u32()?;
        call.body.u32()?; // padding
        let name = attribute_name(call)?;
        let node = call.node();
        answer_sized(call, size, |value| self.host.getxattr(node, name, value))
    }

    pub(in super::super) fn listxattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let size = call.body.u32()?;
        let node = call.node();
        answer_sized(call, size, |names| self.host.listxattr(node, names))
    }

    pub(in super::super) fn removexattr(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let name = attribute_name(call)?;
        self.host.removexattr(&caller, call.node(), name)?;
        Ok(Answer::Reply)
    }
}

/// The beginning that struct fuse_getattr_in and struct fuse_statx_in have in common.
fn optional_handle(call: &mut Call<'_>) -> Result<Option<HandleId>, Errno> {
    let flags = call.body.u32()?;
    call.body.u32()?; // dummy
    let handle = call.body.u64()?;
    Ok((flags & flag::GETATTR_FH != 0).then_some(handle))
}

/// The longer form of struct fuse_setxattr_in has flags of FUSE's own.
fn extended_flags(call: &mut Call<'_>, agreement: Agreement) -> Result<u32, Errno> {
    if !agreement.has(init::SETXATTR_EXT) {
        return Ok(0);
    }
    let flags = call.body.u32()?;
    call.body.u32()?; // padding
    Ok(flags)
}

fn attribute_name<'a>(call: &mut Call<'a>) -> Result<&'a CStr, Errno> {
    match call.body.text(XATTR_NAME_MAX) {
        Ok(name) if name.is_empty() => Err(Errno(libc::ERANGE)),
        Err(Errno(libc::ENAMETOOLONG)) => Err(Errno(libc::ERANGE)),
        other => other,
    }
}

/// Answers with a value of at most `size` bytes, or with its length (struct fuse_getxattr_out) if `size` is 0.
fn answer_sized(
    call: &mut Call<'_>,
    size: u32,
    get: impl FnOnce(&mut [u8]) -> std::io::Result<usize>,
) -> Result<Answer, Errno> {
    if size == 0 {
        let len = get(&mut [])?;
        call.reply.u32(u32::try_from(len).unwrap_or(u32::MAX));
        call.reply.u32(0);
    } else {
        let size = (size as usize).min(XATTR_SIZE_MAX).min(call.reply.left());
        if size == 0 {
            // An empty buffer would ask for the length.
            return Err(Errno(libc::ERANGE));
        }
        call.reply.fill(size, get)?;
    }
    Ok(Answer::Reply)
}
