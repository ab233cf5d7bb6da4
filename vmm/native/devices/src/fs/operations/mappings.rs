//! Mapping files into the window, for guests that have agreed on it. There is no answer but the header's error.

use super::super::decode::{Body, Errno, MALFORMED};
use super::super::mappings::Mappings;
use super::super::server::{Answer, Call, Server};
use super::super::window::{Mapping, page_size};
use super::super::wire::{flag, init};

/// sizeof(struct fuse_removemapping_one)
const REMOVEMAPPING_ONE_LEN: usize = 16;

impl Server {
    fn agreed_mappings(&self, call: &Call<'_>) -> Result<&Mappings, Errno> {
        let agreed = call.agreement.has(init::MAP_ALIGNMENT);
        self.mappings.as_deref().filter(|_| agreed).ok_or(Errno(libc::ENOSYS))
    }

    pub(in super::super) fn setupmapping(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let mappings = self.agreed_mappings(call)?;
        call.body.u64()?; // fh: Linux has none there; the node says it all
        let (file_offset, len) = (call.body.u64()?, call.body.u64()?);
        let (flags, window_offset) = (call.body.u64()?, call.body.u64()?);
        let writable = match flags {
            flag::SETUPMAPPING_READ => false,
            flag::SETUPMAPPING_READ_WRITE => true,
            _ => return Err(MALFORMED),
        };
        mappings.range(window_offset, len)?;
        let in_file = file_offset.checked_add(len).is_some_and(|end| i64::try_from(end).is_ok());
        if !in_file || !file_offset.is_multiple_of(page_size()) {
            return Err(MALFORMED);
        }
        let file = self.host.open_to_map(call.node(), writable)?;
        mappings.map(&*file, Mapping { window_offset, len, file_offset, writable })?;
        Ok(Answer::Reply)
    }

    pub(in super::super) fn removemapping(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let mappings = self.agreed_mappings(call)?;
        let count = call.body.u32()? as usize;
        let len = count.checked_mul(REMOVEMAPPING_ONE_LEN).ok_or(MALFORMED)?;
        let entries = call.body.bytes(len)?;
        let ranges = || {
            entries.chunks_exact(REMOVEMAPPING_ONE_LEN).map(|entry| {
                let mut fields = Body::new(entry);
                Ok(mappings.range(fields.u64()?, fields.u64()?)?)
            })
        };
        // All are good, or nothing is done.
        ranges().try_for_each(|range: Result<_, Errno>| range.map(drop))?;
        for range in ranges() {
            mappings.unmap(&range?)?;
        }
        Ok(Answer::Reply)
    }
}
