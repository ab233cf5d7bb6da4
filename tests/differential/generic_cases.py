"""What Linux file systems do beyond names: the ground of those xfstests "generic" cases that matter to
containers, in our own words, and random calls from a seed.
"""

import random
from collections.abc import Iterator

from .cases import GROUP, KINDS, OWNER, USER, Case, case, make
from .posix_cases import PEOPLE

BLOCK = 4096


def holes() -> Iterator[Case]:
    """Sparse files: SEEK_DATA and SEEK_HOLE, and each mode of fallocate."""
    yield case(
        "holes/seek",
        [
            "open f0 x O_CREAT|O_RDWR 0644",
            "map f0",
            "seek f0 0 data",
            "seek f0 0 hole",
            "ftruncate f0 1000000",
        ],
        [
            "fsync f0",
            "map f0",
            "seek f0 0 data",
            "seek f0 5 hole",
            "pwrite f0 65536 4096 1",
            "fsync f0",
            "map f0",
        ],
        ["pwrite f0 900000 10 1", "fsync f0", "map f0", "seek f0 70000 hole", "seek f0 1000001 data"],
        ["seek f0 -1 data", "seek f0 -5 set", "seek f0 10 end", "seek f0 -3 current", "sum x"],
    )
    ranges = (
        (0, BLOCK),
        (BLOCK, 2 * BLOCK),
        (100, 200),
        (BLOCK - 10, 20),
        (0, 100 * BLOCK),
        (60 * BLOCK, BLOCK),
    )
    for mode in ("plain", "keep", "punch|keep", "zero", "zero|keep", "collapse", "insert", "punch", "0x80"):
        for offset, length in ranges:
            yield case(
                f"fallocate/{mode}/{offset}/{length}",
                ["open f0 x O_CREAT|O_RDWR 0644", f"pwrite f0 0 {64 * BLOCK} 7", "fsync f0", "mark x"],
                [
                    f"fallocate f0 {mode} {offset} {length}",
                    "fstat f0",
                    "since x",
                    "fsync f0",
                    "blocks x",
                    "sum x",
                ],
                ["map-read f0 0 20000"],
            )
    yield case(
        "fallocate/odd",
        ["open f0 x O_CREAT|O_RDWR 0644", "fallocate f0 plain 0 0", "fallocate f0 plain -1 10"],
        ["fallocate f0 plain 10 -1", "fallocate f0 plain 0x7fffffffffffffff 1", "open f1 x O_RDONLY"],
        ["fallocate f1 plain 0 100", "mkdir d 0755", "open f2 d O_RDONLY", "fallocate f2 plain 0 100"],
        [f"chown x {USER} {GROUP}", "chmod x 06777", f"{OWNER} open f3 x O_WRONLY"],
        [f"{OWNER} fallocate f3 plain 0 100", "stat x"],
    )


def nameless_files() -> Iterator[Case]:
    """O_TMPFILE, and giving such a file a name."""
    for who, words in PEOPLE.items():
        yield case(
            f"tmpfile/{who}",
            ["mkdir in 0777", "chmod in 02777", "chown in -1 77"],
            [f"{words} open f0 in O_TMPFILE|O_RDWR 0640", "write f0 5000 3", "fstat f0", "list in"],
            ["link-file f0 in/x", "fstat f0", "sum in/x", "lstat in/x", "close f0", "lstat in/x"],
            [
                f"{words} open f1 in O_TMPFILE|O_WRONLY|O_EXCL 0600",
                "fstat f1",
                "link-file f1 in/y",
                "list in",
            ],
            [f"{words} open f2 in O_TMPFILE|O_RDONLY 0600", f"{words} open f3 absent O_TMPFILE|O_RDWR 0600"],
        )


def copies() -> Iterator[Case]:
    """copy_file_range: ranges, overlap, ends, special bits."""
    before = ["open f0 a O_CREAT|O_RDWR 0644", "write f0 100000 1", "open f1 b O_CREAT|O_RDWR 0644"]
    for start, to, length in (
        (0, 0, 100000),
        (0, 0, 200000),
        (500, 7, 3000),
        (99999, 0, 10),
        (100000, 0, 10),
    ):
        yield case(
            f"copy/{start}/{to}/{length}", before, f"copy f0 {start} f1 {to} {length}", "fstat f1", "sum b"
        )
    yield case(
        "copy/odd",
        before,
        ["copy f0 0 f0 10 20", "copy f0 0 f0 50000 20000", "sum a", "copy f0 -1 f1 0 10", "copy f0 0 f1 0 0"],
        ["open f2 b O_WRONLY|O_APPEND", "copy f0 0 f2 0 10", "open f3 a O_WRONLY", "copy f3 0 f1 0 10"],
        [
            "mkdir d 0755",
            "open f4 d O_RDONLY",
            "copy f4 0 f1 0 10",
            f"chown b {USER} {GROUP}",
            "chmod b 06777",
        ],
        [f"{OWNER} open f5 b O_WRONLY", f"{OWNER} copy f0 0 f5 0 100", "stat b"],
        ["copy f0 0 f1 200000 100", "sum b", "map f1"],
    )


def attributes() -> Iterator[Case]:
    """Extended attributes: name spaces, sizes, flags, rights; capabilities that a write takes away."""
    for space in ("user", "trusted", "security", "system", "odd"):
        for kind in ("file", "dir", "link", "fifo"):
            for who in ("root", "owner", "stranger"):
                words = PEOPLE[who]
                yield case(
                    f"attribute/{space}/{kind}/{who}",
                    [make(kind, "x"), f"lchown x {USER} {GROUP}", "chmod x 0755"],
                    [f"{words} set-attribute x {space}.name value", f"{words} get-attribute x {space}.name"],
                    [f"{words} list-attributes x", f"{words} remove-attribute x {space}.name", "lstat x"],
                )
    yield case(
        "attribute/flags",
        ["create x 0644", "set-attribute x user.a one replace", "set-attribute x user.a one create"],
        [
            "set-attribute x user.a two create",
            "set-attribute x user.a three replace",
            "get-attribute x user.a",
        ],
        [
            "get-attribute x user.a 0",
            "get-attribute x user.a 2",
            "get-attribute x user.b",
            "list-attributes x",
        ],
        ["set-attribute x user.empty", "get-attribute x user.empty", "remove-attribute x user.b", "mark x"],
        [
            "set-attribute x user.c four",
            "since x",
            "list-attributes x",
            "rename x y",
            "get-attribute y user.c",
        ],
    )
    for size in (255, 256, 1000, 3500, 5000):
        yield case(
            f"attribute/size/{size}",
            [
                "create x 0644",
                f"set-attribute x user.{'n' * min(250, size)} v",
                f"set-attribute x user.v {'v' * size}",
            ],
            ["get-attribute x user.v", "get-attribute x user.v 0"],
        )
    yield case(
        "attribute/name", "create x 0644", f"set-attribute x user.{'n' * 251} v", "set-attribute x user. v"
    )
    for space in ("system.posix_acl_access", "system.posix_acl_default"):
        yield case(
            f"attribute/{space}", "mkdir x 0755", f"set-attribute x {space} x", f"get-attribute x {space}"
        )
    for who, words in PEOPLE.items():
        before = ["create x 0777", f"chown x {USER} {GROUP}", "chmod x 0777", "set-capability x"]
        for name, call in {
            "write": ["open f0 x O_WRONLY", "write f0 10 1"],
            "truncate": ["truncate x 100"],
            "open-truncate": ["open f0 x O_WRONLY|O_TRUNC"],
            "allocate": ["open f0 x O_WRONLY", "fallocate f0 plain 0 100"],
            "chown": [f"chown x {USER} 77"],
            "chmod": ["chmod x 0700"],
            "map": ["open f0 x O_RDWR", "ftruncate f0 100", "set-capability x", "map-write f0 0 100 1"],
            "read": ["open f0 x O_RDONLY", "read f0 10"],
        }.items():
            lines = [f"{words} {line}" for line in call]
            yield case(f"capability/{name}/{who}", before, "list-attributes x", lines, "list-attributes x")
        yield case(
            f"capability/set/{who}",
            before[:2],
            f"{words} set-capability x",
            "get-attribute x security.capability",
        )


def direct_and_mapped() -> Iterator[Case]:
    """O_DIRECT beside the page cache, shared mappings, synchronous files."""
    yield case(
        "direct/aligned",
        ["open f0 x O_CREAT|O_RDWR|O_DIRECT 0644", "pwrite f0 0 65536 1", "pread f0 4096 8192", "fstat f0"],
        ["pread f0 61440 8192", "pread f0 65536 4096", "open f1 x O_RDWR", "pread f1 0 65536"],
        ["pwrite f1 4096 4096 2", "pread f0 0 12288", "pwrite f0 8192 4096 3", "pread f1 0 16384", "sum x"],
    )
    yield case(
        "map/shared",
        ["open f0 x O_CREAT|O_RDWR 0644", "ftruncate f0 20000", "map-write f0 0 10000 1", "pread f0 0 20000"],
        [
            "pwrite f0 5000 100 2",
            "map-read f0 0 20000",
            "map-write f0 16384 3616 3",
            "fstat f0",
            "sum x",
            "map f0",
        ],
        ["open f1 x O_RDONLY", "map-write f1 0 100 1", "map-read f1 0 100", "mark x", "map-write f0 0 100 9"],
        ["close f0", "since x", "unlink x", "map-read f1 0 20000"],
    )
    yield case(
        "sync/kinds",
        [
            "open f0 x O_CREAT|O_RDWR|O_SYNC 0644",
            "write f0 5000 1",
            "fsync f0",
            "fdatasync f0",
            "mkdir d 0755",
        ],
        ["open f1 d O_RDONLY", "fsync f1", "fdatasync f1", "open f2 x O_PATH", "fsync f2", "fstat f2"],
    )


def locks() -> Iterator[Case]:
    """BSD, POSIX and open-file locks between files and processes of one guest."""
    opened = ["open f0 x O_CREAT|O_RDWR 0644", "open f1 x O_RDWR", "open f2 x O_RDONLY"]
    yield case(
        "lock/flock",
        opened,
        ["flock f0 exclusive", "flock f1 shared", "flock f0 shared", "flock f1 shared", "flock f1 exclusive"],
        ["flock f0 unlock", "flock f1 exclusive", "child flock f2 shared", "dup f1 f3", "close f1"],
        ["flock f0 shared", "close f3", "flock f0 exclusive", "unlink x", "flock f2 shared"],
    )
    yield case(
        "lock/posix",
        opened,
        [
            "lock f0 write 0 100",
            "child lock f1 write 50 10",
            "child test-lock f1 read 0 0",
            "lock f0 read 50 100",
        ],
        ["child lock f1 read 60 10", "child lock f1 write 60 10", "lock f2 write 0 1", "lock f2 read 500 0"],
        ["child test-lock f1 write 0 0", "lock f0 unlock 0 0", "child lock f1 write 0 0", "close f1"],
        ["child test-lock f0 write 0 0", "lock f0 write 10 10", "close f2", "child test-lock f0 write 0 0"],
    )
    yield case(
        "lock/open-file",
        opened,
        [
            "open-lock f0 write 0 100",
            "open-lock f1 write 50 10",
            "open-lock f1 write 100 10",
            "flock f0 exclusive",
        ],
        ["open-lock f0 unlock 0 0", "open-lock f1 write 50 10", "close f1", "open-lock f0 write 0 0"],
    )


def long_names_and_depths() -> Iterator[Case]:
    """Folders of many entries, deep trees, many links to one file."""
    names = [f"name-{number:04d}-{'p' * (number % 50)}" for number in range(600)]
    yield case(
        "many/entries",
        [f"create {name} 0644" for name in names],
        "list .",
        [f"unlink {n}" for n in names[::2]],
        "list .",
    )
    yield case(
        "many/links",
        "create x 0644",
        [f"link x y{number}" for number in range(200)],
        "stat x",
        "unlink x",
        "stat y7",
    )
    deep = ["/".join(["d"] * depth) for depth in range(1, 60)]
    yield case(
        "many/depth",
        [f"mkdir {path} 0755" for path in deep],
        f"create {deep[-1]}/x 0644",
        f"stat {deep[-1]}/x",
        "rename d e",
        f"stat e{deep[-1][1:]}/x",
    )
    yield case(
        "statx/basic",
        [line for kind in KINDS for line in (make(kind, kind), f"statx {kind}")],
        "statx .",
        "birth .",
    )


def random_calls(seed: int, length: int) -> Iterator[Case]:
    """Calls in random order on few names, so that they meet: folders, links, renames, open files."""
    for number in range(8):
        source = random.Random(f"{seed} {number}")
        names = ["a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "f"]
        slots = [f"f{index}" for index in range(4)]
        people = ["", "", "", f"{OWNER} "]
        lines = []
        for _ in range(length):
            one, two, slot = source.choice(names), source.choice(names), source.choice(slots)
            offset, size = source.randrange(50000), source.randrange(20000)
            call = source.choice(
                (
                    f"mkdir {one} {source.choice(('0755', '0777', '01777', '02775'))}",
                    f"create {one} {source.choice(('0644', '0666', '0600', '0777'))}",
                    f"symlink {two} {one}",
                    f"link {one} {two}",
                    f"rename {one} {two}",
                    f"rename {one} {two} {source.choice(('exchange', 'noreplace'))}",
                    f"unlink {one}",
                    f"rmdir {one}",
                    f"chmod {one} 0{source.randrange(0o10000):o}",
                    f"lchown {one} {source.choice((0, USER, -1))} {source.choice((0, GROUP, 77))}",
                    f"truncate {one} {size}",
                    f"open {slot} {one} O_RDWR|O_NONBLOCK",
                    f"open {slot} {one} O_RDWR|O_CREAT|O_NONBLOCK 0644",
                    f"open {slot} {one} O_WRONLY|O_APPEND|O_NONBLOCK",
                    f"pwrite {slot} {offset} {size} {size}",
                    f"pread {slot} {offset} {size}",
                    f"fstat {slot}",
                    f"ftruncate {slot} {size}",
                    f"fallocate {slot} punch|keep {offset} {size}",
                    f"copy {slot} {offset} {source.choice(slots)} {size} {size}",
                    f"set-attribute {one} user.{source.choice('ab')} {size}",
                    f"list-attributes {one}",
                    f"remove-attribute {one} user.a",
                    f"utimens {one} {offset}.5 {size}.25 nofollow",
                    f"modified {one}",
                    f"sum {one}",
                    f"lstat {one}",
                    f"stat {one}",
                    f"list {source.choice(('.', 'd', 'd/e'))}",
                    f"readlink {one}",
                    f"same {one} {two}",
                )
            )
            lines.append(source.choice(people) + call)
        yield case(f"random/{seed}/{number}", "chmod . 0777", lines, "chmod . 0755", "list .")


GENERIC = {
    "holes": holes,
    "tmpfile": nameless_files,
    "copy": copies,
    "attribute": attributes,
    "direct-map": direct_and_mapped,
    "lock": locks,
    "many": long_names_and_depths,
}
