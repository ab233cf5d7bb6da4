"""`strato ps`, `strato logs`, `strato console`: the running sandboxes, from what the shim leaves on disk.

Relied upon: ``<state_root>/<key>/state.json`` of version 1 with the fields id, namespace, created_at,
shim{pid}, vmm{pid, start_time} (null when it has ended), containers{id: {status}}; beside it vmm.log,
shim.log, and vmm/console.log, which strato-vmm writes and which is therefore not to be trusted. The state
root is ``[shim] state_root`` of the configuration, as the shim reads it.
"""

import json
import os
import select
import sys
import tomllib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from .. import untrusted
from ..errors import HostError
from ..paths import DEFAULT_STATE_ROOT

VERSION = 1
CONFIG_FILE = Path("/etc/strato/config.toml")
CONFIG_VARIABLE = "STRATO_CONFIG"
_LOGS = {"shim": "shim.log", "vmm": "vmm.log", "console": "vmm/console.log"}
_MAX_LOG_BYTES = 64 << 20
_POLL_MS = 200  # regular files cannot be polled; this is how often the console's file is looked at


@dataclass(frozen=True)
class Sandbox:
    """One sandbox as its shim describes it."""

    sandbox_id: str
    namespace: str
    created_at: str
    shim_pid: int
    vmm_pid: int
    containers: dict[str, str]
    """Status by container id."""
    directory: str
    alive: bool
    """Whether its VM process exists."""


def ps(state_root: Path | None, *, as_json: bool) -> int:
    """List the sandboxes."""
    sandboxes, problems = scan(_root(state_root))
    if as_json:
        lines = [json.dumps(asdict(sandbox)) for sandbox in sandboxes]
    else:
        rows = [("SANDBOX", "NAMESPACE", "CREATED", "SHIM", "VMM", "CONTAINERS")]
        rows += [_row(sandbox) for sandbox in sandboxes]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
        lines = ["  ".join(row).rstrip() for row in padded]
    for problem in problems:
        sys.stderr.write(f"strato: {problem}\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def logs(state_root: Path | None, name: str, source: str) -> int:
    """Print logs of one sandbox. Raises HostError."""
    sandbox = find(_root(state_root), name)
    wanted = list(_LOGS) if source == "all" else [source]
    for key in wanted:
        data = _read_log(Path(sandbox.directory) / _LOGS[key])
        if len(wanted) > 1:
            sys.stdout.write(f"==> {key} <==\n")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    return 0


def console(state_root: Path | None, name: str) -> int:
    """Follow the guest console of one sandbox until it ends. Raises HostError."""
    sandbox = find(_root(state_root), name)
    path = Path(sandbox.directory) / _LOGS["console"]
    try:
        vmm = os.pidfd_open(sandbox.vmm_pid)
    except OSError:
        sys.stdout.buffer.write(_read_log(path))
        return 0
    poller = select.poll()
    poller.register(vmm, select.POLLIN)
    ended = False
    with Follower(path) as follower:
        try:
            while not ended:
                # The end is looked for first, so that what was written before it is still printed.
                ended = bool(poller.poll(_POLL_MS))
                sys.stdout.buffer.write(follower.read())
                sys.stdout.flush()
        except KeyboardInterrupt:
            return 0
        finally:
            os.close(vmm)
    return 0


class Follower:
    """Reads what is appended to a file that may be moved away and begun anew. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def read(self) -> bytes:
        """Return what has been added since the last call."""
        data = b"" if self._stream is None else self._stream.read()
        try:
            status = self._path.lstat()
            if self._stream is None or os.fstat(self._stream.fileno()).st_ino != status.st_ino:
                fd = untrusted.open_file(self._path)
                if self._stream is not None:
                    self._stream.close()
                self._stream = os.fdopen(fd, "rb")
                data += self._stream.read()
        except OSError:
            return data
        return data


def scan(root: Path) -> tuple[list[Sandbox], list[str]]:
    """Return the sandboxes below a state root, oldest first, and what could not be read."""
    sandboxes: list[Sandbox] = []
    problems: list[str] = []
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"State root {root} cannot be read: {error.strerror}"]
    for entry in entries:
        path = entry / "state.json"
        try:
            sandboxes.append(_parse(json.loads(path.read_text()), entry))
        except (FileNotFoundError, NotADirectoryError):
            continue  # not a sandbox, or one that is just beginning or ending
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"State {path} cannot be read: {error!r}")
    return sorted(sandboxes, key=lambda sandbox: sandbox.created_at), problems


def find(root: Path, name: str) -> Sandbox:
    """Return the one sandbox with that sandbox or container id, or beginning of one. Raises HostError."""
    sandboxes, _ = scan(root)
    exact = [item for item in sandboxes if name == item.sandbox_id or name in item.containers]
    begun = [
        item for item in sandboxes if any(key.startswith(name) for key in (item.sandbox_id, *item.containers))
    ]
    found = exact or begun
    if not found:
        raise HostError(f"Sandbox {name} does not exist below {root}: see strato ps")
    if len(found) > 1:
        ids = ", ".join(f"{item.namespace}/{item.sandbox_id}" for item in found)
        raise HostError(f"Name {name} means several sandboxes ({ids}): give more of it")
    return found[0]


def _parse(document: dict[str, Any], directory: Path) -> Sandbox:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']} is not {VERSION}")
    vmm = document["vmm"] or {"pid": 0, "start_time": 0}
    return Sandbox(
        sandbox_id=str(document["id"]),
        namespace=str(document["namespace"]),
        created_at=datetime.fromtimestamp(document["created_at"], UTC).isoformat(timespec="seconds"),
        shim_pid=int(document["shim"]["pid"]),
        vmm_pid=int(vmm["pid"]),
        containers={key: str(value["status"]) for key, value in document["containers"].items()},
        directory=str(directory),
        alive=_start_time(int(vmm["pid"])) == int(vmm["start_time"]) != 0,
    )


def _start_time(pid: int) -> int:
    """Field ``starttime`` of /proc/PID/stat, which makes a pid a process's own (proc(5)); 0 without one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name in parentheses may hold anything, so count from its end; starttime is the 22nd field.
    return int(stat.rpartition(b")")[2].split()[19])


def _row(sandbox: Sandbox) -> tuple[str, str, str, str, str, str]:
    containers = ", ".join(f"{key} ({status})" for key, status in sandbox.containers.items())
    return (
        sandbox.sandbox_id,
        sandbox.namespace,
        sandbox.created_at,
        str(sandbox.shim_pid),
        str(sandbox.vmm_pid) if sandbox.alive else f"{sandbox.vmm_pid or '-'} (dead)",
        containers or "-",
    )


def _read_log(path: Path) -> bytes:
    try:
        return untrusted.read_file(path, _MAX_LOG_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise HostError(f"Log {path} cannot be read") from error


def _root(state_root: Path | None) -> Path:
    if state_root is not None:
        return state_root
    found = DEFAULT_STATE_ROOT
    for path in config_files():
        try:
            with path.open("rb") as stream:
                configured = tomllib.load(stream)["shim"]["state_root"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # says nothing of it, or something that the shim will complain about
        found = Path(configured) if isinstance(configured, str) else found
    return found


def config_files() -> list[Path]:
    """The shim's configuration files that exist, later ones override earlier ones (shim/config_files.py)."""
    main = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    drop_ins = sorted((main.parent / "config.d").glob("*.toml"))
    return [path for path in (main, *drop_ins) if path.exists()]
