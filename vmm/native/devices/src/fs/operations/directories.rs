//! Operations on open directories.

use super::super::decode::Errno;
use super::super::reply::Reply;
use super::super::server::{Answer, Call, Server};
use super::super::wire::flag;

/// Most bytes of one listing. Linux asks for a page (6.12) or as much as the reader's buffer holds.
const MAX_LISTING: usize = 128 << 10;

impl Server {
    pub(in super::super) fn opendir(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let flags = call.body.u32()?;
        call.reply.opened(&self.host.opendir(&caller, call.node(), flags)?);
        Ok(Answer::Reply)
    }

    pub(in super::super) fn readdir(&self, call: &mut Call<'_>, plus: bool) -> Result<Answer, Errno> {
        let caller = call.caller()?;
        let (handle, offset, size) = (call.body.u64()?, call.body.u64()?, call.body.u32()? as usize);
        let node = call.node();
        let reply = &mut *call.reply;
        let mut left = size.min(reply.left()).min(MAX_LISTING);
        let mut listed = false;
        let outcome = self.host.readdir(handle, offset, &mut |entry| {
            let name = entry.name.to_bytes();
            let needed = Reply::dirent_len(name.len(), plus);
            if needed > left {
                return false;
            }
            left -= needed;
            listed = true;
            if plus {
                // Linux wants no entry for these two. One that is gone by now is listed by name alone.
                let found = match name {
                    b"." | b".." => None,
                    _ => self.host.lookup(&caller, node, entry.name).ok(),
                };
                match found {
                    Some(found) => reply.entry(&found),
                    None => reply.no_entry(),
                }
            }
            reply.dirent(entry.ino, entry.next_offset, entry.kind, name);
            true
        });
        match outcome {
            // What is in the listing counts in the guest's references: it has to arrive. The error will
            // come again with the next request.
            Err(error) if !listed => Err(error.into()),
            _ => Ok(Answer::Reply),
        }
    }

    pub(in super::super) fn fsyncdir(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let (handle, flags) = (call.body.u64()?, call.body.u32()?);
        self.host.fsyncdir(handle, flags & flag::FSYNC_FDATASYNC != 0)?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn releasedir(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let handle = call.body.u64()?;
        self.host.releasedir(handle)?;
        Ok(Answer::Reply)
    }
}
