//! Operations on names: looking up, making, removing, renaming.

use std::time::Duration;

use super::super::backend::{Attributes, Creation, Entry};
use super::super::decode::{Errno, MALFORMED};
use super::super::server::{Answer, Call, Server};
use super::super::wire::PATH_MAX;

impl Server {
    pub(in super::super) fn lookup(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let name = call.body.name()?;
        let entry = match self.host.lookup(&caller, call.node(), name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                match self.host.absence_timeout(call.node()) {
                    Duration::ZERO => return Err(error.into()),
                    timeout => absent(timeout),
                }
            }
            other => other?,
        };
        call.reply.entry(&entry);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn forget(&self, call: &mut Call<'_>) -> Result<(), Errno> {
        let count = call.body.u64()?;
        self.host.forget(call.node(), count);
        Ok(())
    }

    pub(in super::super) fn batch_forget(&self, call: &mut Call<'_>) -> Result<(), Errno> {
        let count = call.body.u32()?;
        call.body.u32()?; // dummy
        for _ in 0..count {
            // A count that promises more than there is ends here.
            let (node, references) = (call.body.u64()?, call.body.u64()?);
            self.host.forget(node, references);
        }
        Ok(())
    }

    pub(in super::super) fn readlink(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let target = self.host.readlink(call.node())?;
        call.reply.bytes(&target);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn symlink(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let name = call.body.name()?;
        let target = call.body.text(PATH_MAX - 1)?;
        call.reply.entry(&self.host.symlink(&caller, call.node(), name, target)?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn mknod(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (mode, rdev, umask) = (call.body.u32()?, call.body.u32()?, call.body.u32()?);
        call.body.u32()?; // padding
        let name = call.body.name()?;
        let new = Creation { mode, umask, rdev };
        call.reply.entry(&self.host.mknod(&caller, call.node(), name, new)?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn mkdir(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (mode, umask) = (call.body.u32()?, call.body.u32()?);
        let name = call.body.name()?;
        let new = Creation { mode, umask, rdev: 0 };
        call.reply.entry(&self.host.mkdir(&caller, call.node(), name, new)?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn unlink(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let name = call.body.name()?;
        self.host.unlink(&caller, call.node(), name)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn rmdir(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let name = call.body.name()?;
        self.host.rmdir(&caller, call.node(), name)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn rename(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let new_parent = call.body.u64()?;
        self.rename_to(call, new_parent, 0)
    }

    pub(in super::super) fn rename2(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (new_parent, flags) = (call.body.u64()?, call.body.u32()?);
        call.body.u32()?; // padding
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
            return Err(MALFORMED);
        }
        self.rename_to(call, new_parent, flags)
    }

    fn rename_to(&self, call: &mut Call<'_>, new_parent: u64, flags: u32) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (old_name, new_name) = (call.body.name()?, call.body.name()?);
        self.host.rename(&caller, (call.node(), old_name), (new_parent, new_name), flags)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn link(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let node = call.body.u64()?;
        let name = call.body.name()?;
        call.reply.entry(&self.host.link(&caller, node, call.node(), name)?);
        Ok(Answer::Reply)
    }
}

/// The answer that lets the guest remember that there is no such name.
fn absent(timeout: Duration) -> Entry {
    Entry {
        node: 0,
        generation: 0,
        attributes: Attributes::default(),
        entry_timeout: timeout,
        attributes_timeout: Duration::ZERO,
        submount: false,
    }
}
