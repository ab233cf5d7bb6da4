"""What is shown when a test fails: everything the runtime and the daemon have on disk about it at that
moment.
"""

from pathlib import Path

from .daemons import TestDaemon

_NAMES = ("state.json", "shim.log", "vmm.log", "console.log", "exit.json")
_LINES = 60


def collect(daemon: TestDaemon) -> list[tuple[str, str]]:
    """Titles and texts: per sandbox its state and logs, then the end of containerd's log."""
    sections = []
    for path in sorted(daemon.state_root.rglob("*")):
        if path.name in _NAMES and path.is_file():
            sections.append((str(path.relative_to(daemon.state_root)), tail(path)))
    sections.append(("containerd.log", tail(daemon.containerd.log_path, 120)))
    return sections


def tail(path: Path, lines: int = _LINES) -> str:
    """The last lines of a file; the reason when it cannot be read."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)
