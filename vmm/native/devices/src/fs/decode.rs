//! Reading requests: a header and a body over a copy of what the guest wrote. Every length is checked here.

use std::ffi::CStr;
use std::io;

use super::wire::{IN_HEADER_LEN, NAME_MAX};

/// An errno on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// struct fuse_in_header, but for `len`, which [`Header::parse`] has used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the whole request.
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    /// Length of the extensions at the request's end, in bytes.
    pub(super) extension_len: usize,
}

impl Header {
    /// The header of a request; none if `request` is too short for one.
    pub(super) fn parse(request: &[u8]) -> Option<Self> {
        let mut fields = Body::new(request.get(..IN_HEADER_LEN)?);
        let read = |fields: &mut Body<'_>| -> Result<Self, Errno> {
            Ok(Self {
                len: fields.u32()?,
                opcode: fields.u32()?,
                unique: fields.u64()?,
                node: fields.u64()?,
                uid: fields.u32()?,
                gid: fields.u32()?,
                pid: fields.u32()?,
                // In units of eight bytes; the upper half is padding.
                extension_len: (fields.u32()? & 0xffff) as usize * 8,
            })
        };
        read(&mut fields).ok()
    }
}

/// What is left to read of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a> {
    rest: &'a [u8],
}

/// The request is too short for what it says it is, or says what cannot be.
pub(super) const MALFORMED: Errno = Errno(libc::EINVAL);

impl<'a> Body<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (now, rest) = self.rest.split_at_checked(len).ok_or(MALFORMED)?;
        self.rest = rest;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (now, rest) = self.rest.split_first_chunk().ok_or(MALFORMED)?;
        self.rest = rest;
        Ok(*now)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Splits the last `len` bytes off.
    pub(super) fn split_end(&mut self, len: usize) -> Result<Body<'a>, Errno> {
        let at = self.rest.len().checked_sub(len).ok_or(MALFORMED)?;
        let (body, end) = self.rest.split_at_checked(at).ok_or(MALFORMED)?;
        self.rest = body;
        Ok(Body::new(end))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next bytes up to a NUL, which at most `limit` others precede; longer is ENAMETOOLONG.
    pub(super) fn text(&mut self, limit: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| MALFORMED)?;
        if text.count_bytes() > limit {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        self.bytes(text.count_bytes() + 1)?;
        Ok(text)
    }

    /// One name of a directory: not empty, no `/`, neither `.` nor `..`.
    pub(super) fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text(NAME_MAX)?;
        let bytes = name.to_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(MALFORMED);
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_where_the_bytes_do() {
        let mut body = Body::new(&[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!((body.u32(), body.u64(), body.u32()), (Ok(1), Ok(2), Err(MALFORMED)));
        assert_eq!((body.bytes(1), body.is_empty(), body.bytes(1)), (Ok(&[7][..]), true, Err(MALFORMED)));
    }

    #[test]
    fn names_that_are_paths_or_no_names_are_refused() {
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"open", b""] {
            assert_eq!(Body::new(bad).name(), Err(MALFORMED), "{bad:?}");
        }
        let long = [b"n".repeat(256), vec![0]].concat();
        assert_eq!(Body::new(&long).name(), Err(Errno(libc::ENAMETOOLONG)));
        let mut two = Body::new(b"...\0b\0rest");
        assert_eq!((two.name(), two.name()), (Ok(c"..."), Ok(c"b")));
        assert_eq!(two.bytes(4), Ok(&b"rest"[..]));
    }

    #[test]
    fn extensions_are_taken_from_the_end() {
        let mut body = Body::new(b"name\0EXTENDED");
        let mut end = body.split_end(8).unwrap();
        assert_eq!((body.name(), end.bytes(8)), (Ok(c"name"), Ok(&b"EXTENDED"[..])));
        assert!(Body::new(b"short").split_end(6).is_err());
    }
}
