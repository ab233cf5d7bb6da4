//! Saved device state: kind, version, length, then fields of fixed width, little-endian.
//!
//! A record is opaque to everyone but the code that wrote it. A file from disk is no better than a guest:
//! the reader checks every length and refuses an unknown kind or version, and bytes left over.

use std::fmt;

/// Longest record that is read; longer ones are refused before anything is allocated.
pub const MAX_RECORD_LEN: usize = 1 << 20;

/// Why saved state was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Another kind of record than the reader's.
    Kind(u32),
    /// A version that this program does not know.
    Version(u32),
    /// The record ends too early, or bytes are left over.
    Length,
    /// A field has a value that it cannot have.
    Value(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "Saved state is of another kind ({kind:#010x})"),
            Self::Version(version) => write!(f, "Saved state has unknown version {version}"),
            Self::Length => f.write_str("Saved state has a wrong length"),
            Self::Value(field) => write!(f, "Saved state has an impossible value in {field}"),
        }
    }
}

impl std::error::Error for RecordError {}

/// Four letters as the number that names a kind of record.
pub const fn kind(letters: [u8; 4]) -> u32 {
    u32::from_le_bytes(letters)
}

/// Builds a record.
#[derive(Debug)]
pub struct RecordWriter {
    kind: u32,
    version: u32,
    body: Vec<u8>,
}

impl RecordWriter {
    /// An empty record of this kind and version.
    pub fn new(kind: u32, version: u32) -> Self {
        Self { kind, version, body: Vec::new() }
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.body.push(value);
        self
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.body.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.body.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.body.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a length and that many bytes. What exceeds [`MAX_RECORD_LEN`] could not be read back.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.body.extend_from_slice(value);
        self
    }

    /// The finished record.
    pub fn finish(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(12 + self.body.len());
        record.extend_from_slice(&self.kind.to_le_bytes());
        record.extend_from_slice(&self.version.to_le_bytes());
        record.extend_from_slice(&u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        record.extend_from_slice(&self.body);
        record
    }
}

/// Reads a record field by field.
#[derive(Debug)]
pub struct RecordReader<'a> {
    rest: &'a [u8],
    version: u32,
}

impl<'a> RecordReader<'a> {
    /// Checks kind, version (at most `newest`) and length.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn open(record: &'a [u8], kind: u32, newest: u32) -> Result<Self, RecordError> {
        if record.len() > MAX_RECORD_LEN {
            return Err(RecordError::Length);
        }
        let mut reader = Self { rest: record, version: 0 };
        let found = reader.u32()?;
        if found != kind {
            return Err(RecordError::Kind(found));
        }
        reader.version = reader.u32()?;
        if reader.version == 0 || reader.version > newest {
            return Err(RecordError::Version(reader.version));
        }
        if usize::try_from(reader.u32()?).ok() != Some(reader.rest.len()) {
            return Err(RecordError::Length);
        }
        Ok(reader)
    }

    /// The record's version, from 1 on.
    pub fn version(&self) -> u32 {
        self.version
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(RecordError::Length)?;
        self.rest = rest;
        Ok(*field)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`RecordError::Length`], like all readers of fields.
    pub fn u8(&mut self) -> Result<u8, RecordError> {
        self.take::<1>().map(u8::from_le_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`RecordError::Length`]
    pub fn u16(&mut self) -> Result<u16, RecordError> {
        self.take().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`RecordError::Length`]
    pub fn u32(&mut self) -> Result<u32, RecordError> {
        self.take().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`RecordError::Length`]
    pub fn u64(&mut self) -> Result<u64, RecordError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A byte that must be 0 or 1.
    ///
    /// # Errors
    /// [`RecordError::Value`] or [`RecordError::Length`]
    pub fn flag(&mut self, field: &'static str) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Value(field)),
        }
    }

    /// A length and that many bytes.
    ///
    /// # Errors
    /// [`RecordError::Length`]
    pub fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let len = usize::try_from(self.u32()?).map_err(|_| RecordError::Length)?;
        let (field, rest) = self.rest.split_at_checked(len).ok_or(RecordError::Length)?;
        self.rest = rest;
        Ok(field)
    }

    /// All fields must have been read.
    ///
    /// # Errors
    /// [`RecordError::Length`] if bytes are left over.
    pub fn finish(self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RecordError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: u32 = kind(*b"TEST");

    fn sample() -> Vec<u8> {
        RecordWriter::new(KIND, 2).u8(1).u16(2).u32(3).u64(4).bytes(b"five").finish()
    }

    #[test]
    fn round_trip_keeps_every_field() {
        let record = sample();
        let mut reader = RecordReader::open(&record, KIND, 2).unwrap();
        assert_eq!(reader.version(), 2);
        assert!(reader.flag("one").unwrap());
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.bytes(), Ok(&b"five"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn other_kind_newer_version_and_wrong_length_are_refused() {
        let record = sample();
        assert_eq!(RecordReader::open(&record, KIND + 1, 2).unwrap_err(), RecordError::Kind(KIND));
        assert_eq!(RecordReader::open(&record, KIND, 1).unwrap_err(), RecordError::Version(2));
        assert_eq!(RecordReader::open(&record[..20], KIND, 2).unwrap_err(), RecordError::Length);
        let mut longer = record.clone();
        longer.push(0);
        assert_eq!(RecordReader::open(&longer, KIND, 2).unwrap_err(), RecordError::Length);
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_survived() {
        let record = sample();
        for len in 0..record.len() {
            assert!(RecordReader::open(&record[..len], KIND, 2).is_err());
        }
        for position in 0..record.len() {
            let mut bad = record.clone();
            bad[position] ^= 0xff;
            if let Ok(mut reader) = RecordReader::open(&bad, KIND, 2) {
                let _ = (reader.u8(), reader.u16(), reader.u32(), reader.u64());
                let _ = reader.bytes();
                let _ = reader.finish();
            }
        }
    }
}
