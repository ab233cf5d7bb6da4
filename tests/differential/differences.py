"""Where our fs core may differ from C virtiofsd: in what it does as the host itself does and virtiofsd does
not, and in few more calls. A difference that is not listed here fails its test.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cases import Case, name_lines


@dataclass(frozen=True)
class Improvement:
    """Cases (a pattern for their names) in which virtiofsd is not the measure, and why."""

    cases: str
    reason: str


IMPROVEMENTS = (
    Improvement(r"tmpfile/", "virtiofsd 7.2 does not know FUSE_TMPFILE"),
    Improvement(r"make/.*/member/", "virtiofsd makes entries without the caller's supplementary groups"),
    Improvement(r"permission/.*/member", "as above"),
    Improvement(
        r"(open|truncate|write|chown|copy|fallocate|capability)/", "virtiofsd leaves set-id bits to the guest"
    ),
    Improvement(r"chmod/foreign-group/", "virtiofsd leaves set-group-id to the guest"),
    Improvement(r"statx/basic", "virtiofsd does not tell the time of birth (FUSE_STATX)"),
    Improvement(
        r"attribute/(trusted|security)/", "virtiofsd lacks CAP_SYS_ADMIN, which our program here has"
    ),
    Improvement(r"random/", "sums of the above"),
)


@dataclass(frozen=True)
class Deviation:
    """Calls in which we do neither as virtiofsd nor as the host, and why that is right.

    `calls` matches the call before and the call itself, joined by "; ". What `ignored` matches is left out of
    the comparison.
    """

    cases: str
    calls: str
    ignored: str
    reason: str
    cache: str = ""
    """With this cache policy only; empty: with each."""


DEVIATIONS = (
    Deviation(
        r"chown/bits/file/",
        r"(.*; .*chown x -1 -1|.*chown x -1 -1; stat x)$",
        r".*",
        "under FUSE_HANDLE_KILLPRIV_V2 Linux does not tell the server of a chown to nobody; without it every "
        "write would cost another request",
    ),
    Deviation(
        r"attribute/system.posix_acl",
        r".*get-attribute \S+$",
        r".*",
        "ACLs are refused with the same word for all calls",
    ),
    *(
        Deviation(
            r"(write|random)/",
            r".*stat \S+$",
            # The digit of the special bits without set-user-id, of a file that its group may not execute. One
            # entry for each state of the sticky bit, which has to agree.
            rf"(?<=file )[{without}{with_set_group_id}](?=[0-7][0246][0-7] )",
            "a write that the guest does not cache says that privileges go, but not whether the writer is of "
            "the file's group; set-group-id of such a file gives none, and stays",
            cache="none",
        )
        for without, with_set_group_id in ("02", "13")
    ),
    Deviation(
        r"capability/map/root",
        r".*list-attributes x$",
        r"security\.capability",
        "pages written through a mapping reach the host as writes, which clear capabilities; with the other "
        "policies they come later than the look",
        cache="none",
    ),
)


@dataclass(frozen=True)
class Traces:
    """Results by line of the script: of our server, of virtiofsd, and of the host's own file system."""

    ours: Mapping[int, str]
    reference: Mapping[int, str]
    native: Mapping[int, str]


def parse(output: str) -> dict[int, str]:
    """The results that guest/script.c printed, by line."""
    pairs = (line.partition(" ") for line in output.splitlines())
    return {int(number): result.strip() for number, _, result in pairs if number.isdigit()}


def unexplained(cases: Sequence[Case], traces: Traces, cache: str) -> list[str]:
    """One line for each difference that nothing explains; `cache` is the policy of our server."""
    found = []
    before = ""
    for number, (name, call) in name_lines(cases).items():
        results = [trace.get(number, "nothing") for trace in (traces.ours, traces.reference, traces.native)]
        ours, reference, native = results
        calls, before = f"{before}; {call}", call
        if ours == reference or (
            ours == native and any(re.match(entry.cases, name) for entry in IMPROVEMENTS)
        ):
            continue
        if any(
            entry.cache in ("", cache)
            and re.match(entry.cases, name)
            and re.match(entry.calls, calls)
            and re.sub(entry.ignored, "", ours, count=1) == re.sub(entry.ignored, "", reference, count=1)
            for entry in DEVIATIONS
        ):
            continue
        found.append(
            f"{name}: {_clip(call)}: ours {_clip(ours)}, virtiofsd {_clip(reference)}, host {_clip(native)}"
        )
    return found


def _clip(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
