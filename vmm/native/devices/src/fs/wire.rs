//! Numbers of the FUSE protocol, by their names in linux/include/uapi/linux/fuse.h (7.39, Linux 6.6).

#![allow(dead_code)] // bits that nobody asks for yet stay beside those that are used

pub(super) const KERNEL_VERSION: u32 = 7;
/// The newest minor version spoken here.
pub(super) const KERNEL_MINOR_VERSION: u32 = 39;
/// The oldest: Linux 4.18, the first with a FUSE that virtio-fs could use.
pub(super) const MIN_KERNEL_MINOR_VERSION: u32 = 27;

/// sizeof(struct fuse_in_header)
pub(super) const IN_HEADER_LEN: usize = 40;
/// sizeof(struct fuse_out_header)
pub(super) const OUT_HEADER_LEN: usize = 16;
/// sizeof(struct fuse_write_in)
pub(super) const WRITE_IN_LEN: usize = 40;
/// sizeof(struct fuse_entry_out)
pub(super) const ENTRY_OUT_LEN: usize = 128;
/// sizeof(struct fuse_dirent) without the name
pub(super) const DIRENT_LEN: usize = 24;
/// sizeof(struct fuse_init_out)
pub(super) const INIT_OUT_LEN: usize = 64;

/// NAME_MAX
pub(super) const NAME_MAX: usize = 255;
/// PATH_MAX, terminator included
pub(super) const PATH_MAX: usize = 4096;
/// XATTR_NAME_MAX
pub(super) const XATTR_NAME_MAX: usize = 255;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX
pub(super) const XATTR_SIZE_MAX: usize = 65536;

/// Most bytes of one READ or WRITE.
pub(super) const MAX_WRITE: u32 = 1 << 20;
/// The same in pages of 4 KiB.
pub(super) const MAX_PAGES: u16 = 256;

macro_rules! opcodes {
    ($($name:ident = $number:literal, $metric:literal;)*) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Opcode { $($name),* }

        impl Opcode {
            pub(super) fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }

        /// (opcode's number, name of its counter)
        pub(super) const COUNTED: &[(u32, &str)] = &[$(($number, $metric)),*];
    };
}

opcodes! {
    Lookup = 1, "lookup_requests";
    Forget = 2, "forget_requests";
    GetAttr = 3, "getattr_requests";
    SetAttr = 4, "setattr_requests";
    ReadLink = 5, "readlink_requests";
    SymLink = 6, "symlink_requests";
    MkNod = 8, "mknod_requests";
    MkDir = 9, "mkdir_requests";
    Unlink = 10, "unlink_requests";
    RmDir = 11, "rmdir_requests";
    Rename = 12, "rename_requests";
    Link = 13, "link_requests";
    Open = 14, "open_requests";
    Read = 15, "read_requests";
    Write = 16, "write_requests";
    StatFs = 17, "statfs_requests";
    Release = 18, "release_requests";
    FSync = 20, "fsync_requests";
    SetXAttr = 21, "setxattr_requests";
    GetXAttr = 22, "getxattr_requests";
    ListXAttr = 23, "listxattr_requests";
    RemoveXAttr = 24, "removexattr_requests";
    Flush = 25, "flush_requests";
    Init = 26, "init_requests";
    OpenDir = 27, "opendir_requests";
    ReadDir = 28, "readdir_requests";
    ReleaseDir = 29, "releasedir_requests";
    FSyncDir = 30, "fsyncdir_requests";
    GetLk = 31, "getlk_requests";
    SetLk = 32, "setlk_requests";
    SetLkW = 33, "setlkw_requests";
    Access = 34, "access_requests";
    Create = 35, "create_requests";
    Interrupt = 36, "interrupt_requests";
    Destroy = 38, "destroy_requests";
    BatchForget = 42, "batch_forget_requests";
    FAllocate = 43, "fallocate_requests";
    ReadDirPlus = 44, "readdirplus_requests";
    Rename2 = 45, "rename2_requests";
    LSeek = 46, "lseek_requests";
    CopyFileRange = 47, "copy_file_range_requests";
    SetUpMapping = 48, "setupmapping_requests";
    RemoveMapping = 49, "removemapping_requests";
    SyncFs = 50, "syncfs_requests";
    TmpFile = 51, "tmpfile_requests";
    StatX = 52, "statx_requests";
}

/// One more than the largest opcode that is counted by itself.
pub(super) const OPCODE_LIMIT: usize = 53;

/// FUSE_INIT's flags; bits from 32 on travel in `flags2`.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const MAP_ALIGNMENT: u64 = 1 << 26;
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const HAS_INODE_DAX: u64 = 1 << 33;
    pub(crate) const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Flags of single requests and answers.
pub(super) mod flag {
    pub(crate) const GETATTR_FH: u32 = 1 << 0;
    pub(crate) const ATTR_SUBMOUNT: u32 = 1 << 0;
    pub(crate) const ATTR_DAX: u32 = 1 << 1;
    pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;
    pub(crate) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
    pub(crate) const WRITE_CACHE: u32 = 1 << 0;
    pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    pub(crate) const LK_FLOCK: u32 = 1 << 0;
    pub(crate) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
    pub(crate) const FOPEN_DIRECT_IO: u32 = 1 << 0;
    pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const FOPEN_CACHE_DIR: u32 = 1 << 3;
    pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
    pub(crate) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    pub(crate) const SETUPMAPPING_READ: u64 = 1 << 1;
    /// FUSE_SETUPMAPPING_FLAG_WRITE with it: what can be written can be read.
    pub(crate) const SETUPMAPPING_READ_WRITE: u64 = SETUPMAPPING_READ | 1 << 0;
}

/// FATTR_*: which fields of a SETATTR count.
pub(super) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// Kinds of request extensions (enum fuse_ext_type).
pub(super) mod extension {
    pub(crate) const GROUPS: u32 = 32;
}
