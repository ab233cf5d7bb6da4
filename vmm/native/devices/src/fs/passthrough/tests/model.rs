//! Random operations, each done through the host half in one folder and directly in another: the same
//! errno, the same results, and in the end the same tree.

use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::fixture::*;
use super::model_sides::{Direct, Outcome, Random, Spot, Through, acting, done};
use crate::fs::backend::{AttributeChange, Caller, Creation, Entry, HostFs, NewTime};

const OPERATIONS: usize = 4000;

fn to_outcome<T>(result: io::Result<T>, show: impl FnOnce(T) -> String) -> Outcome {
    result.map(show).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn nothing<T>(_: T) -> String {
    String::new()
}

struct Model<'a> {
    random: Random,
    direct: Direct,
    through: Through<'a>,
    compared: usize,
    failures: usize,
}

impl Model<'_> {
    fn same(&mut self, what: &dyn Debug, through: Outcome, direct: Outcome) {
        assert_eq!(through, direct, "operation {} {what:?}", self.compared);
        self.compared += 1;
        self.failures += usize::from(direct.is_err());
    }

    /// Whether a regular file, or nothing, is there: the others are opened by the guest, in the guest.
    fn plain(&self, spot: &Spot) -> bool {
        self.direct.stat(spot).map_or(true, |stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
    }

    /// The parent is a directory or is not there. What else it may be is the guest's to find out: it would
    /// follow a symlink, and see all parents before it asks.
    fn spot(&mut self) -> Spot {
        loop {
            let spot = Spot::random(&mut self.random);
            let parent = spot.parent.clone().map(|name| Spot { parent: None, name });
            match parent.map(|parent| self.direct.stat(&parent)) {
                Some(Ok(stat)) if stat.st_mode & libc::S_IFMT != libc::S_IFDIR => {}
                _ => return spot,
            }
        }
    }

    fn caller(&mut self) -> Caller {
        self.random.pick(&[(0, 0), (0, 0), (1000, 1000), (1001, 0)]).into()
    }

    fn make(&mut self) {
        let spot = self.spot();
        let caller = self.caller();
        let mode = self.random.pick(&[0o644, 0o600, 0o4755, 0o2777, 0o777, 0]);
        let (fs, path, fd) = (self.through.0, spot.path(), self.direct.fd());
        let kind = self.random.below(6);
        let new = |mode| Creation { mode, umask: 0o022, rdev: 0 };
        // Through the guest's kernel the caller may write to the directory; so it may here.
        let show = |entry: Entry| self.through.show(&entry);
        let parent = self.through.parent(&spot);
        let through = match kind {
            0 => parent.and_then(|parent| fs.mkdir(&caller, parent, &spot.name, new(mode | 0o777))),
            1 => parent.and_then(|parent| fs.mknod(&caller, parent, &spot.name, new(libc::S_IFIFO | mode))),
            2 => parent.and_then(|parent| fs.symlink(&caller, parent, &spot.name, &spot.name)),
            3 => parent.and_then(|parent| fs.mknod(&caller, parent, &spot.name, new(libc::S_IFREG | mode))),
            _ => parent.and_then(|parent| {
                let flags = (libc::O_RDWR | libc::O_EXCL).cast_unsigned();
                let (entry, opened) = fs.create(&caller, parent, &spot.name, flags, new(mode))?;
                let mut write = || fs.write_at(opened.handle, 0, b"new");
                if caller.uid == 0 {
                    write()?
                } else {
                    fs.write_unprivileged(opened.handle, &mut write)?
                };
                fs.release(opened.handle)?;
                Ok(Entry { attributes: fs.attributes(entry.node, None)?.0, ..entry })
            }),
        };
        let through = to_outcome(through, show);
        // SAFETY: C strings and plain integers.
        let direct = acting(&caller, || unsafe {
            match kind {
                0 => done(libc::mkdirat(fd, path.as_ptr(), mode | 0o777).into()),
                1 => done(libc::mknodat(fd, path.as_ptr(), libc::S_IFIFO | mode, 0).into()),
                2 => done(libc::symlinkat(spot.name.as_ptr(), fd, path.as_ptr()).into()),
                3 => done(libc::mknodat(fd, path.as_ptr(), libc::S_IFREG | mode, 0).into()),
                _ => self.direct.open(&spot, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, mode).and_then(
                    |file| done(libc::pwrite(file.as_raw_fd(), b"new".as_ptr().cast(), 3, 0) as i64),
                ),
            }
        });
        let direct = direct.and_then(|_| self.direct.show(&spot));
        self.same(&(kind, &spot, caller), through, direct);
    }

    fn move_or_remove(&mut self) {
        let (from, to) = (self.spot(), self.spot());
        let (fs, fd) = (self.through.0, self.direct.fd());
        let (from_path, to_path) = (from.path(), to.path());
        let kind = self.random.below(5);
        let flags = self.random.pick(&[0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
        let from_parent = self.through.parent(&from);
        let through = match kind {
            0 => from_parent.and_then(|parent| fs.unlink(&root(), parent, &from.name)),
            1 => from_parent.and_then(|parent| fs.rmdir(&root(), parent, &from.name)),
            2 => self
                .through
                .node(&from)
                .and_then(|node| fs.link(&root(), node, self.through.parent(&to)?, &to.name).map(drop)),
            _ => from_parent.and_then(|parent| {
                fs.rename(&root(), (parent, &from.name), (self.through.parent(&to)?, &to.name), flags)
            }),
        };
        // SAFETY: C strings and plain integers.
        let direct = unsafe {
            match kind {
                0 => done(libc::unlinkat(fd, from_path.as_ptr(), 0).into()),
                1 => done(libc::unlinkat(fd, from_path.as_ptr(), libc::AT_REMOVEDIR).into()),
                2 => done(libc::linkat(fd, from_path.as_ptr(), fd, to_path.as_ptr(), 0).into()),
                _ => {
                    let (from, to) = (from_path.as_ptr(), to_path.as_ptr());
                    done(libc::syscall(libc::SYS_renameat2, fd, from, fd, to, flags))
                }
            }
        };
        self.same(&(kind, &from, &to, flags), to_outcome(through, nothing), direct);
    }

    fn change(&mut self) {
        let spot = self.spot();
        let mut change = AttributeChange::default();
        let kind = self.random.below(4);
        let (mode, id) = (self.random.pick(&[0o600, 0o4711, 0o2755, 0o777]), self.random.pick(&[0, 1000, 7]));
        let size = self.random.below(20_000);
        // Everybody may go on making files in directories, so that the host need not be overruled.
        let kept = self.direct.stat(&spot).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
        let mode = if kept == libc::S_IFDIR { mode | 0o777 } else { mode };
        match kind {
            0 => change.mode = Some(mode),
            1 => (change.uid, change.gid) = (Some(id), Some(id)),
            2 => change.size = Some(size),
            _ => (change.atime, change.mtime) = (None, Some(NewTime::At(size.cast_signed(), 17))),
        }
        if kind == 2 && !self.plain(&spot) || kind == 0 && kept == libc::S_IFLNK {
            return;
        }
        let fs = self.through.0;
        let through = self.through.node(&spot).and_then(|node| {
            let changed = fs.set_attributes(&root(), node, None, &change)?.0;
            Ok(format!("{:o} {} {:?}", changed.mode, changed.uid, (kind == 3).then_some(changed.mtime)))
        });
        let (path, fd, absolute) = (spot.path(), self.direct.fd(), self.direct.absolute(&spot));
        let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
        let times = [omit, libc::timespec { tv_sec: size.cast_signed(), tv_nsec: 17 }];
        // SAFETY: C strings, plain integers, two times.
        let direct = unsafe {
            match kind {
                0 => done(libc::fchmodat(fd, path.as_ptr(), mode, 0).into()),
                1 => done(libc::fchownat(fd, path.as_ptr(), id, id, libc::AT_SYMLINK_NOFOLLOW).into()),
                2 => done(libc::truncate(absolute.as_ptr(), size.cast_signed()).into()),
                _ => {
                    let flags = libc::AT_SYMLINK_NOFOLLOW;
                    done(libc::utimensat(fd, path.as_ptr(), times.as_ptr(), flags).into())
                }
            }
        };
        let direct = direct.and_then(|_| self.direct.stat(&spot)).map(|stat| {
            let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap());
            format!("{:o} {} {:?}", stat.st_mode, stat.st_uid, (kind == 3).then_some(mtime))
        });
        self.same(&(kind, &spot, change), to_outcome(through, |text| text), direct);
    }

    fn data(&mut self) {
        let (spot, other) = (self.spot(), self.spot());
        if !self.plain(&spot) || !self.plain(&other) {
            return;
        }
        let (kind, offset) = (self.random.below(5), self.random.below(20_000));
        let len = self.random.below(9000) + 1;
        let append = self.random.pick(&[0, libc::O_APPEND]);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let mode = self.random.pick(&[
            0,
            keep,
            libc::FALLOC_FL_PUNCH_HOLE | keep,
            libc::FALLOC_FL_PUNCH_HOLE,
            libc::FALLOC_FL_ZERO_RANGE,
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
        ]);
        let whence = self.random.pick(&[libc::SEEK_DATA, libc::SEEK_HOLE]);
        let data = vec![u8::try_from(offset % 255).unwrap() + 1; usize::try_from(len).unwrap()];
        let fs = self.through.0;
        let through = self.through.node(&spot).and_then(|node| {
            let handle = fs.open_node(node, libc::O_RDWR | append)?;
            let outcome = match kind {
                0 => fs.write_at(handle, offset.cast_signed(), &data).map(|count| count.to_string()),
                1 => fs
                    .fallocate(&root(), handle, mode.cast_unsigned(), offset & !4095, len & !4095)
                    .map(nothing),
                2 => fs.lseek(handle, offset, whence.cast_unsigned()).map(|found| found.to_string()),
                3 => fs.read_at(handle, offset.cast_signed(), data.len()).map(|data| format!("{data:?}")),
                _ => self.through.node(&other).and_then(|node| {
                    let target = fs.open_node(node, libc::O_RDWR)?;
                    let copied = fs.copy_file_range(&root(), (handle, offset), (target, 0), len);
                    fs.release(target)?;
                    Ok(copied?.to_string())
                }),
            };
            fs.release(handle)?;
            outcome
        });
        let direct = self.direct.open(&spot, libc::O_RDWR, 0).and_then(|file| {
            let fd = file.as_raw_fd();
            let (mut at, mut start) = (offset.cast_signed(), 0);
            let mut read = vec![0_u8; data.len()];
            // SAFETY: buffers and offsets live as long as the calls.
            unsafe {
                let count = match kind {
                    0 => libc::pwrite(fd, data.as_ptr().cast(), data.len(), at) as i64,
                    1 => {
                        let (from, len) = ((offset & !4095).cast_signed(), (len & !4095).cast_signed());
                        done(libc::fallocate(fd, mode, from, len).into())?;
                        return Ok(String::new());
                    }
                    2 => libc::lseek(fd, at, whence),
                    3 => libc::pread(fd, read.as_mut_ptr().cast(), read.len(), at) as i64,
                    _ => {
                        let target = self.direct.open(&other, libc::O_RDWR, 0)?;
                        let len = usize::try_from(len).unwrap();
                        libc::copy_file_range(fd, &raw mut at, target.as_raw_fd(), &raw mut start, len, 0)
                            as i64
                    }
                };
                done(count)?;
                read.truncate(usize::try_from(count).unwrap());
                Ok(if kind == 3 { format!("{read:?}") } else { count.to_string() })
            }
        });
        self.same(&(kind, &spot, &other, offset, len, mode), to_outcome(through, |text| text), direct);
    }

    fn xattr(&mut self) {
        let spot = self.spot();
        let name = self.random.pick(&[c"user.a", c"user.b", c"trusted.c", c"security.d"]);
        let value = self.random.pick(&[&b"1"[..], b"longer value", b""]);
        let flags = self.random.pick(&[0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
        let (kind, fs) = (self.random.below(4), self.through.0);
        let mut buffer = vec![0; usize::try_from(self.random.below(40)).unwrap()];
        let through = self.through.node(&spot).and_then(|node| match kind {
            0 => fs.setxattr(&root(), node, name, value, flags.cast_unsigned(), false).map(nothing),
            1 => fs.removexattr(&root(), node, name).map(nothing),
            2 => fs.getxattr(node, name, &mut buffer).map(|len| format!("{len} {buffer:?}")),
            _ => fs.listxattr(node, &mut buffer).map(|len| format!("{len} {buffer:?}")),
        });
        let path = self.direct.absolute(&spot);
        let mut own = vec![0_u8; buffer.len()];
        // SAFETY: C strings and buffers of the lengths that are passed.
        let direct = unsafe {
            let (path, name) = (path.as_ptr(), name.as_ptr());
            match kind {
                0 => done(libc::lsetxattr(path, name, value.as_ptr().cast(), value.len(), flags).into()),
                1 => done(libc::lremovexattr(path, name).into()),
                2 => {
                    let len = libc::lgetxattr(path, name, own.as_mut_ptr().cast(), own.len());
                    done(len as i64).map(|_| format!("{len} {own:?}"))
                }
                _ => {
                    let len = libc::llistxattr(path, own.as_mut_ptr().cast(), own.len());
                    done(len as i64).map(|_| format!("{len} {own:?}"))
                }
            }
        };
        self.same(&(kind, &spot, name, flags), to_outcome(through, |text| text), direct);
    }

    fn nameless(&mut self) {
        let (spot, to) = (self.spot(), self.spot());
        let caller = self.caller();
        let fs = self.through.0;
        let flags = libc::O_RDWR.cast_unsigned();
        let new = Creation { mode: 0o640, umask: 0, rdev: 0 };
        let through = self.through.parent(&spot).and_then(|parent| {
            let (entry, opened) = fs.tmpfile(&caller, parent, flags, new)?;
            fs.write_at(opened.handle, 0, b"nameless")?;
            let linked =
                self.through.parent(&to).and_then(|parent| fs.link(&root(), entry.node, parent, &to.name));
            fs.release(opened.handle)?;
            linked
        });
        let through = to_outcome(through, |entry| self.through.show(&entry));
        let directory = Spot { parent: None, name: spot.parent.clone().unwrap_or_else(|| c(".")) };
        let made = acting(&caller, || self.direct.open(&directory, libc::O_TMPFILE | libc::O_RDWR, 0o640));
        let direct = made.and_then(|file| {
            let (from, path) = (c(format!("/proc/self/fd/{}", file.as_raw_fd())), to.path());
            // SAFETY: C strings and a buffer of the length that is passed.
            unsafe {
                libc::pwrite(file.as_raw_fd(), b"nameless".as_ptr().cast(), 8, 0);
                let (fd, follow) = (self.direct.fd(), libc::AT_SYMLINK_FOLLOW);
                done(libc::linkat(libc::AT_FDCWD, from.as_ptr(), fd, path.as_ptr(), follow).into())?;
            }
            self.direct.show(&to)
        });
        self.same(&("nameless", &spot, &to), through, direct);
    }

    fn look(&mut self) {
        let spot = self.spot();
        let parent = self.through.parent(&spot);
        let entry = parent.and_then(|parent| self.through.0.lookup(&root(), parent, &spot.name));
        let target = entry.as_ref().ok().and_then(|entry| self.through.0.readlink(entry.node).ok());
        let through = to_outcome(entry, |entry| format!("{} {target:?}", self.through.show(&entry)));
        let direct = self.direct.show(&spot).map(|text| {
            let mut buffer = vec![0_u8; 300];
            // SAFETY: a C string and a buffer of the length that is passed.
            let len = unsafe {
                let (path, fd) = (spot.path(), self.direct.fd());
                libc::readlinkat(fd, path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
            };
            let target = usize::try_from(len).ok().map(|len| buffer[..len].to_vec());
            format!("{text} {target:?}")
        });
        self.same(&("look", &spot), through, direct);
    }

    /// Whole trees, names and attributes and contents.
    fn compare_trees(&self, through: &Path, direct: &Path) {
        let tree = |path: &Path| {
            let list =
                "find . -printf '%P %y %m %U %G %n %l ' -type f -exec md5sum {} ';' -o -printf '\\n' | sort";
            let output =
                std::process::Command::new("sh").args(["-c", list]).current_dir(path).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let (through, direct) = (tree(through), tree(direct));
        assert_eq!(through, direct);
        assert!(!through.is_empty());
    }
}

impl From<(u32, u32)> for Caller {
    fn from((uid, gid): (u32, u32)) -> Self {
        user(uid, gid)
    }
}

fn run(seed: u64) {
    let (through, direct) = (Scratch::new(), Scratch::new());
    for folder in [&through, &direct] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let fs = serve(through.path());
    fs.prepare_thread().unwrap();
    let mut model = Model {
        random: Random(seed),
        direct: Direct(open_directory(direct.path())),
        through: Through(&fs),
        compared: 0,
        failures: 0,
    };
    for turn in 0..OPERATIONS {
        match model.random.below(16) {
            0..=3 => model.make(),
            4..=6 => model.move_or_remove(),
            7..=8 => model.change(),
            9..=11 => model.data(),
            12..=13 => model.xattr(),
            14 => model.nameless(),
            _ => model.look(),
        }
        if turn % 500 == 499 {
            // All over again, as after a reboot of the guest.
            let options = fs.options.get();
            fs.begin(options);
        }
    }
    model.compare_trees(through.path(), direct.path());
    let (compared, failures) = (model.compared, model.failures);
    assert!(failures * 10 > compared && failures * 10 < compared * 9, "{failures} of {compared} failed");
}

#[test]
fn operations_through_the_host_half_are_the_same_as_direct_ones() {
    if !is_root() {
        return;
    }
    for seed in 1..=4 {
        eprintln!("seed {seed}");
        run(seed);
    }
}
