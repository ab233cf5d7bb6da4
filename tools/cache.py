"""The content-addressed cache of expensive products: kernel, guest image, native builds, test tools.

Lives in `$XDG_CACHE_HOME/strato` (default `~/.cache/strato`), shared by all checkouts of a user. An entry is
`<name>/<first 16 hex of sha256 of its inputs>/`; it is built in a folder beside it and renamed when it is
whole, under a lock of its own, so that a killed build leaves nothing that looks finished and two builds
of one entry wait for each other. A *workspace* (`work/<name>/<key>/`) is the opposite: a folder that a
build tool such as cargo fills and reuses by its own rules.

An entry's folder time is that of its last use; `prune` goes by it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import CacheError
from .progress import say

_KEY_DIGITS = 16
_INPUTS = "inputs.json"
_LOCKS = ".locks"
_WORK = "work"


def default_root() -> Path:
    """`$XDG_CACHE_HOME/strato`; a relative XDG_CACHE_HOME is ignored, as the XDG specification asks."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path.home() / ".cache"
    return base / "strato"


def key_of(inputs: Mapping[str, str]) -> str:
    """The key of an entry made from these inputs."""
    text = json.dumps(dict(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def digest_files(paths: list[Path], base: Path) -> str:
    """One sha256 over names (relative to `base`), execute bits and contents of files, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        mode = "x" if os.access(path, os.X_OK) else "-"
        total.update(f"{path.relative_to(base)}\0{mode}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


@dataclass(frozen=True)
class EntryInfo:
    """A finished entry or a workspace as `make cache` lists it."""

    name: str
    path: Path
    size_bytes: int
    last_used: float  # seconds since the epoch


class Cache:
    """The cache below one root folder, which is made when first needed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()

    def entry(self, name: str, inputs: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        """The folder of the entry for these inputs; `build` fills it when it is not there yet.

        `build` gets an empty folder that is not yet the entry's final place, so products must not
        refer to their own path. Its exceptions pass through and leave no entry.
        """
        final = self.path(name, inputs)
        if not final.is_dir():
            with self._lock(name, final.name):
                # Another process may have built it while this one waited for the lock.
                if not final.is_dir():
                    self._build(final, inputs, build)
        os.utime(final)
        return final

    def path(self, name: str, inputs: Mapping[str, str]) -> Path:
        """Where the entry for these inputs is or would be."""
        return self.root / name / key_of(inputs)

    @contextmanager
    def workspace(self, name: str, inputs: Mapping[str, str]) -> Iterator[Path]:
        """A folder that stays between uses, locked against other users for the time of the context."""
        folder = self.root / _WORK / name / key_of(inputs)
        with self._lock(f"{_WORK}-{name}", folder.name):
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            yield folder

    def _build(self, final: Path, inputs: Mapping[str, str], build: Callable[[Path], None]) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        # Left-overs of killed builds of this entry: nobody else can be at work here, we hold its lock.
        for stale in final.parent.glob(f".{final.name}-*"):
            shutil.rmtree(stale)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            build(partial)
            (partial / _INPUTS).write_text(json.dumps(dict(inputs), indent=1, sort_keys=True) + "\n")
            partial.chmod(0o755)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @contextmanager
    def _lock(self, name: str, key: str) -> Iterator[None]:
        folder = self.root / _LOCKS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f"{name}-{key}").open("w")
        except OSError as error:
            raise CacheError(f"Cannot use the cache in {self.root}; set XDG_CACHE_HOME") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Waiting for another build of {name}/{key}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def list(self) -> tuple[EntryInfo, ...]:
        """All entries and workspaces, the one used last first."""
        folders = [path for path in self.root.glob("*/*") if path.parent.name not in (_LOCKS, _WORK)]
        folders += self.root.glob(f"{_WORK}/*/*")
        infos = (
            EntryInfo(str(path.parent.relative_to(self.root)), path, _size(path), path.stat().st_mtime)
            for path in folders
            if path.is_dir() and not path.name.startswith(".")
        )
        return tuple(sorted(infos, key=lambda info: info.last_used, reverse=True))

    def prune(self, max_age_s: float) -> tuple[EntryInfo, ...]:
        """Remove what was not used for `max_age_s` seconds; returns what was removed.

        Entries that are linked from a checkout's build folder are found broken by the next build,
        which makes them again.
        """
        oldest = time.time() - max_age_s
        removed = tuple(info for info in self.list() if info.last_used < oldest)
        for info in removed:
            with self._lock(info.name.replace("/", "-"), info.path.name):
                shutil.rmtree(info.path)
        return removed


def _size(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
