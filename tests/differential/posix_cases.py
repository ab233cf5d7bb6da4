"""What POSIX and Linux promise of each call on names: the ground that pjdfstest covers, in our own words."""

from collections.abc import Iterator

from .cases import GROUP, KINDS, MEMBER, OWNER, STRANGER, USER, Case, case, drop, make

PEOPLE = {"root": "as 0:0", "owner": OWNER, "member": MEMBER, "stranger": STRANGER}
NAME_MAX, PATH_MAX = 255, 4096
# Calls by what they are, with the path that a case is about; `present` and `folder` exist beside it.
CALLS = {
    "stat": "stat {}",
    "lstat": "lstat {}",
    "open": "open f0 {} O_RDONLY|O_NONBLOCK",
    "open-create": "open f0 {} O_CREAT|O_WRONLY|O_NONBLOCK 0644",
    "open-exclusive": "open f0 {} O_CREAT|O_EXCL|O_WRONLY 0644",
    "open-directory": "open f0 {} O_RDONLY|O_DIRECTORY",
    "open-nofollow": "open f0 {} O_RDONLY|O_NOFOLLOW|O_NONBLOCK",
    "chmod": "chmod {} 0640",
    "chown": "chown {} 1 2",
    "lchown": "lchown {} 1 2",
    "mkdir": "mkdir {} 0755",
    "mkfifo": "mkfifo {} 0644",
    "mknod": "mknod {} char 0644 1 3",
    "link-from": "link {} target",
    "link-to": "link present {}",
    "rename-from": "rename {} target",
    "rename-to": "rename present {}",
    "rename-folder-to": "rename folder {}",
    "symlink": "symlink text {}",
    "readlink": "readlink {}",
    "rmdir": "rmdir {}",
    "unlink": "unlink {}",
    "truncate": "truncate {} 123",
    "utimens": "utimens {} now now",
    "utimens-nofollow": "utimens {} now now nofollow",
    "access": "access {} r|w",
    "list": "list {}",
    "set-attribute": "set-attribute {} user.a value",
    "list-attributes": "list-attributes {}",
    "statfs": "statfs {}",
}


def every_path() -> Iterator[Case]:
    """Each call on each odd path: missing, too long, through what is no folder, in a circle, with slashes."""
    long_folders = "/".join(["d" * 200] * 3)
    paths = {
        "missing": ("absent", []),
        "empty": ("<empty>", []),
        "below-missing": ("absent/name", []),
        "longest-name": ("n" * NAME_MAX, []),
        "name-too-long": ("n" * (NAME_MAX + 1), []),
        "path-too-long": ("/".join(["."] * (PATH_MAX // 2)) + "/x", []),
        "deep": (
            f"{long_folders}/x",
            ["mkdir " + "/".join(["d" * 200] * depth) + " 0755" for depth in (1, 2, 3)],
        ),
        "circle": ("circle", ["symlink circle circle"]),
        "two-circles": ("left/x", ["symlink right left", "symlink left right"]),
        "dangling": ("dangling", ["symlink absent dangling"]),
        "through-link": ("link/x", ["mkdir place 0755", "create place/x 0644", "symlink place link"]),
        "slash-after-file": ("plain/", ["create plain 0644"]),
        "slash-after-folder": ("place/", ["mkdir place 0755"]),
        "slash-after-missing": ("absent/", []),
        "slash-after-link": ("link/", ["mkdir place 0755", "symlink place link"]),
        "dot": ("place/.", ["mkdir place 0755"]),
        "dot-dot": ("place/below/..", ["mkdir place 0755", "mkdir place/below 0755"]),
        **{f"below-{kind}": ("thing/x", [make(kind, "thing")]) for kind in KINDS if kind not in ("dir",)},
        **{f"on-{kind}": ("thing", [make(kind, "thing")]) for kind in KINDS},
    }
    for title, (path, before) in paths.items():
        for name, call in CALLS.items():
            yield case(
                f"path/{title}/{name}",
                ["create present 0644", "mkdir folder 0755", *before, call.format(path), f"lstat {path}"],
                "list .",
            )


def permission_to_search_and_write() -> Iterator[Case]:
    """Each call as somebody who may or may not search or change the folder, by each kind of right."""
    for mode in (0o000, 0o100, 0o300, 0o500, 0o700, 0o030, 0o070, 0o003, 0o007, 0o1777, 0o777):
        for who in ("owner", "member", "stranger"):
            lines = ["mkdir in 0755", f"chown in {USER} {GROUP}", f"chmod in 0{mode:o}"]
            for name, call in CALLS.items():
                target = call.format("in/x").replace("present", "in/present").replace("folder", "in/folder")
                target = target.replace("target", "in/target")
                lines += [
                    "create in/x 0666",
                    "create in/present 0666",
                    "mkdir in/folder 0777",
                    f"{PEOPLE[who]} {target}",
                    "unlink in/x",
                    "unlink in/present",
                    "unlink in/target",
                ]
                del name
            yield case(f"permission/{mode:04o}/{who}", lines)


def modes() -> Iterator[Case]:
    """chmod: on every kind, by everyone, with every special bit; what it does to the times."""
    for kind in KINDS:
        lines = [make(kind, "x"), "lstat x"]
        for mode in (0, 0o111, 0o444, 0o777, 0o1777, 0o2755, 0o4755, 0o7777):
            lines += [f"chmod x 0{mode:o}", "lstat x"]
        yield case(f"chmod/kind/{kind}", lines, "mark x", "chmod x 0600", "since x")
        for who, words in PEOPLE.items():
            lines = [make(kind, "x"), f"lchown x {USER} {GROUP}"]
            for mode in (0o640, 0o1644, 0o2755, 0o4755, 0o6777):
                lines += [f"{words} chmod x 0{mode:o}", "lstat x"]
            yield case(f"chmod/{kind}/{who}", lines)
    for group in (GROUP, GROUP - 2, 77, 5):
        yield case(
            f"chmod/foreign-group/{group}",
            ["create x 0644", f"chown x {USER} {group}", f"{OWNER} chmod x 02755", "stat x"],
            [f"as {USER}:{GROUP}:77 chmod x 02755", "stat x"],
        )
    for mask in (0, 0o22, 0o77, 0o777):
        made = [line for kind in KINDS for line in (make(kind, f"x-{kind}", 0o666), f"lstat x-{kind}")]
        yield case(f"umask/{mask:03o}", f"umask 0{mask:o}", made)


def owners() -> Iterator[Case]:
    """chown: by everyone to everyone; the special bits it takes away."""
    for kind in KINDS:
        for call in ("chown", "lchown"):
            lines = [make(kind, "x")]
            for to in (f"{USER} {GROUP}", "-1 -1", "-1 77", "5 -1", "0 0"):
                lines += [f"{call} x {to}", "lstat x"]
            yield case(f"{call}/kind/{kind}", lines, "mark x", f"{call} x 9 9", "since x")
    for who, words in PEOPLE.items():
        for to in (f"{USER} {GROUP}", f"-1 {GROUP}", "-1 77", "-1 5", f"{USER} 77", "5 5", "-1 -1", "0 -1"):
            yield case(
                f"chown/{who}/{to.replace(' ', ':')}",
                ["create x 0644", f"chown x {USER} {GROUP}", f"{words} chown x {to}", "stat x"],
                [f"as {USER}:{GROUP}:77 chown x {to}", "stat x"],
            )
        for mode in (0o4755, 0o2755, 0o6755, 0o6711, 0o2644, 0o6644, 0o7777):
            for kind in ("file", "dir"):
                yield case(
                    f"chown/bits/{kind}/{mode:04o}/{who}",
                    [make(kind, "x"), f"chown x {USER} {GROUP}", f"chmod x 0{mode:o}"],
                    [f"{words} chown x {USER} {GROUP}", "stat x", f"chmod x 0{mode:o}"],
                    [f"{words} chown x -1 -1", "stat x"],
                )


def links() -> Iterator[Case]:
    """link, symlink, readlink: counts, kinds, owners, times."""
    for kind in KINDS:
        yield case(
            f"link/kind/{kind}",
            [make(kind, "x"), "link x y", "lstat x", "lstat y", "same x y", "link y z", "lstat z"],
            ["unlink x", "lstat y", "unlink y", "lstat z", "mark z", "link z w", "since z", "unlink w"],
            ["since z", "link z z", make(kind, "there"), "link z there"],
        )
        for who, words in PEOPLE.items():
            yield case(
                f"link/by/{kind}/{who}",
                ["mkdir in 0777", "chmod in 0777", make(kind, "x"), f"lchown x {USER} {GROUP}"],
                [f"{words} link x in/y", "lstat in/y", "lchown x 0 0", f"{words} link x in/z", "lstat x"],
            )
    for length in (1, 100, 255, 1023, 4094, 4095):
        yield case(f"symlink/length/{length}", f"symlink {'t' * length} x", "lstat x", "readlink x")
    yield case("symlink/empty", "symlink <empty> x", "lstat x")
    yield case("link/to-folder", "mkdir d 0755", "link d e", "mkdir d/s 0755", "link d/s e", "list .")
    for who, words in PEOPLE.items():
        yield case(
            f"symlink/owner/{who}",
            ["mkdir in 0777", "chmod in 0777", f"{words} symlink text in/x", "lstat in/x", "mark in"],
            [f"{words} symlink text in/y", "since in"],
        )


def making() -> Iterator[Case]:
    """mkdir, mkfifo, mknod, open with O_CREAT: owners, inherited groups, times of the folder, devices."""
    for kind in KINDS:
        for who, words in PEOPLE.items():
            for mode in (0o777, 0o2777, 0o1777, 0o3777):
                yield case(
                    f"make/{kind}/{who}/{mode:04o}",
                    ["mkdir in 0777", "chown in -1 77", f"chmod in 0{mode:o}"],
                    [f"{words} {make(kind, 'in/x', 0o666)}", "lstat in/x", f"{words} {make(kind, 'in/x')}"],
                    [f"{words} {make(kind, 'in/y', 0o7777)}", "lstat in/y"],
                )
        yield case(
            f"make/times/{kind}",
            ["mkdir in 0755", "mark in", make(kind, "in/x"), "since in", "mark in", drop(kind, "in/x")],
            ["since in"],
        )
        for other in KINDS:
            yield case(f"make/over/{kind}/{other}", make(kind, "x"), make(other, "x"), "lstat x")
    for numbers in ("0 0", "1 3", "255 255", "511 65535", "4095 1048575"):
        for kind in ("char", "block"):
            yield case(
                f"mknod/{kind}/{numbers.replace(' ', ',')}", f"mknod x {kind} 0600 {numbers}", "stat x"
            )


def removing() -> Iterator[Case]:
    """unlink and rmdir: kinds, what is in use, what is not empty, sticky folders."""
    for kind in KINDS:
        yield case(
            f"unlink/kind/{kind}",
            [make(kind, "x"), "unlink x", "lstat x", make(kind, "y"), "rmdir y", "lstat y"],
            [make(kind, "z"), "link z w", "mark w", "unlink z", "since w", "list ."],
        )
    for inside in KINDS:
        yield case(
            f"rmdir/holds/{inside}", "mkdir d 0755", make(inside, "d/x"), "rmdir d", "unlink d", "list d"
        )
    yield case(
        "unlink/open",
        ["open f0 x O_CREAT|O_RDWR 0644", "write f0 1000 1", "unlink x", "fstat f0", "pread f0 0 1000"],
        ["pwrite f0 5000 100 2", "fstat f0", "ftruncate f0 10", "fstat f0", "fchmod f0 0600", "fstat f0"],
        ["open f1 x O_CREAT|O_EXCL|O_RDWR 0644", "fstat f1", "close f0", "fstat f1", "list ."],
    )
    yield case(
        "rmdir/odd", "mkdir d 0755", "rmdir d/.", "mkdir d/e 0755", "rmdir d/e/..", "rmdir .", "rmdir /"
    )
    for verb in ("unlink", "rmdir", "rename-away", "rename-over"):
        for folder_owner in (0, USER, USER - 2):
            for entry_owner in (0, USER, USER - 2):
                kind = "dir" if verb == "rmdir" else "file"
                call = {"rename-away": "rename in/x y/x", "rename-over": "rename y/x in/x"}
                yield case(
                    f"sticky/{verb}/{folder_owner}/{entry_owner}",
                    ["mkdir in 0777", "mkdir y 0777", "chmod y 0777", f"chown in {folder_owner} 0"],
                    ["chmod in 01777", make(kind, "in/x"), f"chown in/x {entry_owner} 0", make(kind, "y/x")],
                    [f"chown y/x {USER} 0", f"{OWNER} {call.get(verb, f'{verb} in/x')}", "list in", "list y"],
                )


def renaming() -> Iterator[Case]:
    """rename: every kind over every kind, into itself, with links, with flags; times and owners."""
    for old in KINDS:
        for new in (*KINDS, "none"):
            for flag in ("", " noreplace", " exchange"):
                before = [make(old, "old"), "link old other"]
                before += [make(new, "new")] if new != "none" else []
                yield case(
                    f"rename{flag.replace(' ', '/')}/{old}/{new}",
                    [*before, "mark old", f"rename old new{flag}", "lstat old", "lstat new", "lstat other"],
                    "list .",
                )
    yield case(
        "rename/into-itself",
        ["mkdir a 0755", "mkdir a/b 0755", "rename a a/b/c", "rename a a", "rename a/b a", "rename a/. b"],
        ["rename a/b/.. c", "rename a/b .", "create f 0644", "link f g", "rename f g", "list .", "stat f"],
    )
    yield case(
        "rename/full-folder",
        ["mkdir a 0755", "mkdir b 0755", "create b/x 0644", "rename a b", "rename b a", "list .", "list a"],
        ["mkdir c 0755", "rename c a exchange", "list c", "list a"],
    )
    yield case(
        "rename/flags", "create a 0644", "create b 0644", "rename a b noreplace|exchange", "rename a b 16"
    )
    yield case("rename/whiteout", "create a 0644", "rename a b whiteout", "lstat a", "lstat b")
    yield case(
        "rename/times",
        [
            "mkdir a 0755",
            "mkdir b 0755",
            "create a/x 0644",
            "mark a",
            "rename a/x b/x",
            "since a",
            "mark b/x",
        ],
        ["rename b/x b/y", "since b/x", "since b/y", "mark b", "rename b/y a/y", "since b"],
    )
    for who, words in PEOPLE.items():
        yield case(
            f"rename/folder-of-others/{who}",
            ["mkdir a 0777", "chmod a 0777", "mkdir b 0777", "chmod b 0777", "mkdir a/d 0755"],
            [f"{words} rename a/d b/d", "list b", f"chown b/d {USER} {GROUP}", f"{words} rename b/d a/e"],
        )


def opening() -> Iterator[Case]:
    """open: rights by class, flags on every kind, truncation, O_CREAT through links."""
    for mode in (
        0,
        0o400,
        0o200,
        0o100,
        0o600,
        0o040,
        0o020,
        0o060,
        0o004,
        0o002,
        0o006,
        0o477,
        0o074,
        0o707,
    ):
        for who, words in PEOPLE.items():
            lines = ["create x 0644", f"chown x {USER} {GROUP}", f"chmod x 0{mode:o}"]
            for how in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_RDONLY|O_TRUNC", "O_WRONLY|O_APPEND", "O_PATH"):
                lines.append(f"{words} open f0 x {how}")
            lines += [f"{words} access x {how}" for how in ("r", "w", "x", "r|w|x")]
            yield case(f"open/rights/{mode:03o}/{who}", lines)
    for kind in KINDS:
        lines = [make(kind, "x", 0o666)]
        for how in (
            "O_RDONLY",
            "O_WRONLY",
            "O_RDWR",
            "O_RDONLY|O_DIRECTORY",
            "O_RDONLY|O_NOFOLLOW",
            "O_PATH",
        ):
            if kind in ("block", "char"):
                continue  # the device of the guest answers, not the share
            lines += [f"open f0 x {how}|O_NONBLOCK", "fstat f0", "close f0"]
        lines += ["open f0 x O_CREAT|O_EXCL|O_RDWR 0644"]
        yield case(f"open/kind/{kind}", lines)
    yield case(
        "open/truncate",
        [
            "open f0 x O_CREAT|O_RDWR 0644",
            "write f0 4000 1",
            "mark x",
            "open f1 x O_WRONLY|O_TRUNC",
            "since x",
        ],
        ["fstat f0", "pread f0 0 100", "pwrite f0 10000 5 1", "fstat f1", "sum x"],
        [f"chown x {USER} {GROUP}", "chmod x 04755", f"{OWNER} open f2 x O_WRONLY|O_TRUNC", "stat x"],
    )
    yield case(
        "open/create-through-link",
        ["symlink target x", "open f0 x O_CREAT|O_WRONLY 0600", "lstat target", "lstat x"],
        [
            "symlink absent/name y",
            "open f1 y O_CREAT|O_WRONLY 0600",
            "open f2 x O_CREAT|O_EXCL|O_WRONLY 0600",
        ],
    )
    yield case(
        "open/append",
        [
            "open f0 x O_CREAT|O_RDWR|O_APPEND 0644",
            "open f1 x O_RDWR|O_APPEND",
            "write f0 100 1",
            "write f1 50 2",
        ],
        ["write f0 7 3", "pwrite f0 0 9 4", "fstat f1", "sum x", "seek f0 0 set", "write f0 3 5", "sum x"],
    )
    for mode in (0o000, 0o200, 0o444, 0o600):
        yield case(
            f"open/created-with-mode/{mode:03o}",
            [f"{OWNER} open f0 x O_CREAT|O_RDWR 0{mode:o}", "mkdir in 0777", "chmod in 0777"],
            [f"{OWNER} open f0 in/x O_CREAT|O_RDWR 0{mode:o}", "write f0 10 1", "fstat f0"],
            [f"{OWNER} open f1 in/x O_RDWR"],
        )


def sizes_and_times() -> Iterator[Case]:
    """truncate and utimensat: sizes, special bits, who may, which values."""
    for size in (0, 1, 4095, 4096, 4097, 1 << 20, (1 << 32) + 1, (1 << 43), 1 << 62, (1 << 63) - 1, -1):
        yield case(
            f"truncate/size/{size}",
            ["open f0 x O_CREAT|O_RDWR 0644", "write f0 5000 1", "mark x", f"truncate x {size}", "stat x"],
            ["since x", f"ftruncate f0 {size}", "fstat f0", "pread f0 4000 2000"],
        )
    for who, words in PEOPLE.items():
        for mode in (0o4777, 0o2777, 0o2767, 0o6777, 0o644):
            yield case(
                f"truncate/bits/{who}/{mode:04o}",
                ["create x 0644", f"chown x {USER} {GROUP}", f"chmod x 0{mode:o}"],
                [
                    f"{words} truncate x 100",
                    "stat x",
                    f"chmod x 0{mode:o}",
                    f"{words} truncate x 100",
                    "stat x",
                ],
            )
            yield case(
                f"write/bits/{who}/{mode:04o}",
                ["create x 0644", f"chown x {USER} {GROUP}", f"chmod x 0{mode:o}"],
                [f"{words} open f0 x O_WRONLY", f"{words} write f0 10 1", "stat x"],
            )
        for times in ("now now", "100.5 200.25", "now omit", "omit now", "omit omit", "now 5.0"):
            lines = ["create x 0644", f"chown x {USER} {GROUP}"]
            for mode in (0o644, 0o666, 0o444):
                lines += [f"chmod x 0{mode:o}", f"{words} utimens x {times}"]
            yield case(f"utimens/{who}/{times.replace(' ', '/')}", lines)
    for kind in KINDS:
        yield case(
            f"utimens/kind/{kind}",
            [make(kind, "x"), "utimens x 100.000000001 200.999999999 nofollow", "times x", "mark x"],
            ["utimens x omit 300.5 nofollow", "times x", "utimens x 7.0 omit nofollow", "times x"],
        )
    for value in (
        "0.0",
        "-1.0",
        "-1.5",
        "2147483647.999999999",
        "2147483648.0",
        "4294967296.0",
        "15000000000.0",
    ):
        yield case(f"utimens/value/{value}", "create x 0644", f"utimens x {value} {value}", "times x")
    yield case(
        "utimens/invalid", "create x 0644", "utimens x 1.1000000000 1.0", "utimens x 1.-5 1.0", "times absent"
    )


POSIX = {
    "path": every_path,
    "permission": permission_to_search_and_write,
    "chmod": modes,
    "chown": owners,
    "link": links,
    "make": making,
    "remove": removing,
    "rename": renaming,
    "open": opening,
    "size-time": sizes_and_times,
}
