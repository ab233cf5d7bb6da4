//! One request in, one answer out. No rings here: the device's worker and the pool's threads call this with
//! a chain that is theirs, at the same time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use strato_virtio::{Chain, ChainError, GuestRam};

use super::backend::{CachePolicy, Caller, HostFs, NodeId};
use super::decode::{Body, Errno, Header, MALFORMED};
use super::device::FsConfig;
use super::init::{self, Agreement, GuestOffer};
use super::mappings::Mappings;
use super::metrics::FsMetrics;
use super::reply::Reply;
use super::wire::{IN_HEADER_LEN, OUT_HEADER_LEN, Opcode, extension};

/// With cache policy `none` the guest asks for a name at every use, and the answer brings the attributes. It
/// would ask for them once more at once, for the name's file and for every directory on the way, if they were
/// not good for a moment: Linux makes it one or two of its ticks. So names are never old, nor is what stat(2)
/// says of them; what fstat(2) says of an open file can be so old if its name has just been used.
pub(super) const ATTRIBUTES_GRACE: Duration = Duration::from_millis(1);

/// Whether a request may keep its thread waiting for a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It may.
    Waits,
    /// What is not in the page cache is left to another thread.
    CachedOnly,
}

/// Whether it is worth asking for cached data only. A file system in memory, or an exotic one, refuses every
/// time; a share may hold several kinds, so it is asked again now and then.
#[derive(Debug, Default)]
pub(super) struct CachedReads {
    pause: AtomicU32,
}

impl CachedReads {
    /// Reads that are made without asking after a refusal.
    const PAUSE: u32 = 255;

    /// What to do for one read.
    pub(super) fn patience(&self, wanted: Patience) -> Patience {
        // A count that two threads lower at once is as good.
        match self.pause.load(Ordering::Relaxed) {
            0 => wanted,
            left => {
                self.pause.store(left - 1, Ordering::Relaxed);
                Patience::Waits
            }
        }
    }

    /// The file system does not know what is cached.
    pub(super) fn refused(&self) {
        self.pause.store(Self::PAUSE, Ordering::Relaxed);
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is done, with so many bytes in the chain's writable part.
    Used(u32),
    /// It would have to wait and [`Patience`] forbids it; nothing has been done.
    WouldWait,
}

/// What an operation leaves to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// What is in the reply.
    Reply,
    /// The header alone: so many bytes after it are in guest memory already.
    Data(u32),
    /// Nothing; see [`Verdict::WouldWait`].
    WouldWait,
}

/// What came in: the copy of a request, and the chain with what was not copied.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub(super) request: &'a [u8],
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
}

/// A request taken apart, for one operation.
pub(super) struct Call<'a> {
    pub(super) header: Header,
    pub(super) body: Body<'a>,
    pub(super) reply: &'a mut Reply,
    pub(super) exchange: Exchange<'a>,
    pub(super) agreement: Agreement,
    pub(super) patience: Patience,
}

impl Call<'_> {
    pub(super) fn node(&self) -> NodeId {
        self.header.node
    }

    /// Who asks; takes the request's extensions off the body.
    pub(super) fn caller(&mut self) -> Result<Caller, Errno> {
        let supplementary_gid = match self.header.extension_len {
            0 => None,
            len => supplementary_group(self.body.split_end(len)?)?,
        };
        let Header { uid, gid, pid, .. } = self.header;
        Ok(Caller { uid, gid, pid, supplementary_gid })
    }
}

/// The group in a request's extensions. Security contexts are never agreed on, so there are none.
fn supplementary_group(mut extensions: Body<'_>) -> Result<Option<u32>, Errno> {
    let mut group = None;
    while !extensions.is_empty() {
        let (size, kind) = (extensions.u32()?, extensions.u32()?);
        let len = usize::try_from(size).ok().and_then(|size| size.checked_sub(8)).ok_or(MALFORMED)?;
        let mut content = Body::new(extensions.bytes(len)?);
        if kind != extension::GROUPS || group.is_some() {
            return Err(MALFORMED);
        }
        group = match content.u32()? {
            0 => None,
            1 => Some(content.u32()?),
            // Linux sends the one that matches the parent.
            _ => return Err(MALFORMED),
        };
    }
    Ok(group)
}

/// Bytes that the answer of an operation has at least; a guest that leaves less room is refused before
/// anything is done.
fn least_answer(opcode: Opcode) -> usize {
    match opcode {
        Opcode::Lookup | Opcode::SymLink | Opcode::MkNod | Opcode::MkDir | Opcode::Link => 128,
        Opcode::GetAttr | Opcode::SetAttr => 104,
        Opcode::Create | Opcode::TmpFile => 144,
        Opcode::Open | Opcode::OpenDir => 16,
        Opcode::Write | Opcode::LSeek | Opcode::CopyFileRange => 8,
        Opcode::StatFs => 80,
        Opcode::GetLk => 24,
        Opcode::StatX => 288,
        Opcode::Init => 64,
        _ => 0,
    }
}

/// The FUSE half, without its rings.
pub(super) struct Server {
    pub(super) host: Arc<dyn HostFs>,
    pub(super) metrics: Arc<FsMetrics>,
    pub(super) cached_reads: CachedReads,
    /// None: no window.
    pub(super) mappings: Option<Arc<Mappings>>,
    grace: Duration,
    config: FsConfig,
    mounted: AtomicBool,
    agreed: AtomicU64,
}

impl Server {
    pub(super) fn new(config: FsConfig, host: Arc<dyn HostFs>) -> Self {
        let mappings = config.window.as_ref().map(|window| Arc::new(Mappings::new(Arc::clone(window))));
        if let Some(mappings) = &mappings {
            // Not an Arc: the mappings end with the device.
            let mappings: Weak<Mappings> = Arc::downgrade(mappings);
            host.tell_of_removals(mappings);
        }
        Self {
            mappings,
            host,
            metrics: Arc::default(),
            cached_reads: CachedReads::default(),
            grace: if config.cache == CachePolicy::None { ATTRIBUTES_GRACE } else { Duration::ZERO },
            config,
            mounted: AtomicBool::new(false),
            agreed: AtomicU64::new(0),
        }
    }

    /// Whether a guest has mounted and not yet gone.
    pub(super) fn mounted(&self) -> bool {
        self.mounted.load(Ordering::Acquire)
    }

    /// Length of the window; 0 if there is none.
    pub(super) fn window_length(&self) -> u64 {
        self.mappings.as_ref().map_or(0, |mappings| mappings.window_length())
    }

    /// The guest is gone. No request may be under way.
    pub(super) fn end(&self) {
        if self.mounted.swap(false, Ordering::AcqRel) {
            if let Some(mappings) = &self.mappings {
                mappings.clear();
            }
            self.host.end();
        }
    }

    /// Carries one request out.
    ///
    /// # Errors
    /// Guest memory that was there when the chain was checked is not there any more.
    pub(super) fn answer(
        &self,
        exchange: Exchange<'_>,
        reply: &mut Reply,
        patience: Patience,
    ) -> Result<Verdict, ChainError> {
        let room = exchange.chain.writable_len() as usize;
        let Some(header) = Header::parse(exchange.request) else {
            FsMetrics::add(&self.metrics.malformed, 1);
            return self.refuse_with(exchange, reply, 0, libc::EIO);
        };
        reply.begin(room, self.grace);
        let (error, more) = match self.dispatch(header, exchange, reply, patience) {
            Ok(None) => return Ok(Verdict::Used(0)),
            Ok(Some(Answer::WouldWait)) => return Ok(Verdict::WouldWait),
            Ok(Some(Answer::Data(len))) => (0, len),
            Ok(Some(Answer::Reply)) if reply.fits() => (0, 0),
            Ok(Some(Answer::Reply)) => (libc::EIO, 0),
            Err(Errno(error)) => (error, 0),
        };
        FsMetrics::add(&self.metrics.errors, u64::from(error != 0));
        if error != 0 {
            return self.refuse_with(exchange, reply, header.unique, error);
        }
        let answer = reply.finish(header.unique, 0, more);
        exchange.chain.write_at(exchange.ram, 0, answer)?;
        Ok(Verdict::Used(u32::try_from(answer.len()).unwrap_or(u32::MAX).saturating_add(more)))
    }

    /// Answers with EIO what cannot be carried out.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(super) fn refuse(&self, exchange: Exchange<'_>, reply: &mut Reply) -> Result<Verdict, ChainError> {
        let unique = Header::parse(exchange.request).unwrap_or_default().unique;
        self.refuse_with(exchange, reply, unique, libc::EIO)
    }

    /// Answers with an error, or comes back empty-handed if there is no room even for that.
    fn refuse_with(
        &self,
        exchange: Exchange<'_>,
        reply: &mut Reply,
        unique: u64,
        error: i32,
    ) -> Result<Verdict, ChainError> {
        let room = exchange.chain.writable_len() as usize;
        if room < OUT_HEADER_LEN {
            return Ok(Verdict::Used(0));
        }
        reply.begin(room, self.grace);
        exchange.chain.write_at(exchange.ram, 0, reply.finish(unique, -error, 0))?;
        Ok(Verdict::Used(OUT_HEADER_LEN as u32))
    }

    /// None: this kind of request has no answer.
    fn dispatch(
        &self,
        header: Header,
        exchange: Exchange<'_>,
        reply: &mut Reply,
        patience: Patience,
    ) -> Result<Option<Answer>, Errno> {
        let opcode = Opcode::from_number(header.opcode);
        let silent = matches!(opcode, Some(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt));
        let len = header.len as usize;
        let too_short = len < IN_HEADER_LEN || header.len > exchange.chain.readable_len();
        let least = OUT_HEADER_LEN + opcode.map_or(0, least_answer);
        let early = !self.mounted() && opcode != Some(Opcode::Init);
        if too_short || early || (!silent && (exchange.chain.writable_len() as usize) < least) {
            FsMetrics::add(&self.metrics.malformed, 1);
            return if silent { Ok(None) } else { Err(Errno(libc::EIO)) };
        }
        if patience == Patience::Waits || opcode != Some(Opcode::Read) {
            self.metrics.count(header.opcode);
        }
        // A WRITE's data stay in guest memory.
        let copied = exchange.request.get(IN_HEADER_LEN..len.min(exchange.request.len()));
        let agreement = Agreement { flags: self.agreed.load(Ordering::Relaxed) };
        let body = Body::new(copied.unwrap_or_default());
        let mut call = Call { header, body, reply, exchange, agreement, patience };
        let call = &mut call;
        match opcode.ok_or(Errno(libc::ENOSYS))? {
            Opcode::Lookup => self.lookup(call),
            Opcode::GetAttr => self.getattr(call),
            Opcode::SetAttr => self.setattr(call),
            Opcode::ReadLink => self.readlink(call),
            Opcode::SymLink => self.symlink(call),
            Opcode::MkNod => self.mknod(call),
            Opcode::MkDir => self.mkdir(call),
            Opcode::Unlink => self.unlink(call),
            Opcode::RmDir => self.rmdir(call),
            Opcode::Rename => self.rename(call),
            Opcode::Rename2 => self.rename2(call),
            Opcode::Link => self.link(call),
            Opcode::Open => self.open(call),
            Opcode::Read => self.read(call),
            Opcode::Write => self.write(call),
            Opcode::StatFs => self.statfs(call),
            Opcode::Release => self.release(call),
            Opcode::FSync => self.fsync(call),
            Opcode::SetXAttr => self.setxattr(call),
            Opcode::GetXAttr => self.getxattr(call),
            Opcode::ListXAttr => self.listxattr(call),
            Opcode::RemoveXAttr => self.removexattr(call),
            Opcode::Flush => self.flush(call),
            Opcode::Init => self.init(call),
            Opcode::OpenDir => self.opendir(call),
            Opcode::ReadDir => self.readdir(call, false),
            Opcode::ReadDirPlus => self.readdir(call, true),
            Opcode::ReleaseDir => self.releasedir(call),
            Opcode::FSyncDir => self.fsyncdir(call),
            Opcode::GetLk => self.getlk(call),
            Opcode::SetLk => self.setlk(call, false),
            Opcode::SetLkW => self.setlk(call, true),
            Opcode::Access => self.access(call),
            Opcode::Create => self.create(call),
            Opcode::TmpFile => self.tmpfile(call),
            Opcode::FAllocate => self.fallocate(call),
            Opcode::LSeek => self.lseek(call),
            Opcode::CopyFileRange => self.copy_file_range(call),
            Opcode::SetUpMapping => self.setupmapping(call),
            Opcode::RemoveMapping => self.removemapping(call),
            Opcode::SyncFs => self.syncfs(call),
            Opcode::StatX => self.statx(call),
            Opcode::Destroy => {
                self.end();
                Ok(Answer::Reply)
            }
            // Nothing waits long enough to be worth interrupting.
            Opcode::Interrupt => return Ok(None),
            // Errors in these have nobody to go to.
            Opcode::Forget => return Ok(self.forget(call).ok().and(None)),
            Opcode::BatchForget => return Ok(self.batch_forget(call).ok().and(None)),
        }
        .map(Some)
    }

    /// A guest mounts. A second INIT is a new guest whose predecessor left without a word.
    fn init(&self, call: &mut Call<'_>) -> Result<Answer, Errno> {
        let offer = GuestOffer::parse(call.body)?;
        let agreement = init::negotiate(&self.config, self.host.remote_locks(), &offer)?;
        self.end();
        if let Some(agreement) = agreement {
            self.agreed.store(agreement.flags, Ordering::Relaxed);
            self.host.begin(agreement.options());
            self.mounted.store(true, Ordering::Release);
            FsMetrics::add(&self.metrics.mounts, 1);
        }
        init::answer(call.reply, &offer, agreement);
        Ok(Answer::Reply)
    }
}
