"""A VM with the same folder contents on two shares, ours and virtiofsd's, and the host beside them.

Programs from `guest/` are compiled once and run in all three places; what they print is compared.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.framework import guest_image
from tests.framework.command import run
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import REFERENCE, STRATO, Share

_SOURCES = Path(__file__).with_name("guest")
PROGRAMS = {
    "script": ("script.c", "script_files.c", "script_names.c"),
    "stress": ("stress.c",),
    "escape": ("escape.c",),
    "streams": ("streams.c",),
}
GUEST_TIMEOUT_S = 280.0


@dataclass(frozen=True)
class Outcome:
    """What one program gave in the three places."""

    ours: str
    reference: str
    native: str


def compile_programs(directory: Path) -> dict[str, Path]:
    """Compiles all programs as static ones; their paths by name."""
    flags = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-static", "-s")
    for name, sources in PROGRAMS.items():
        paths = [_SOURCES / source for source in sources]
        subprocess.run(["gcc", *flags, "-o", directory / name, *paths], check=True)
    return {name: directory / name for name in PROGRAMS}


class Workbench:
    """The running VM; made by `workbench`."""

    def __init__(self, vm: DeviceVm, directory: Path, programs: Mapping[str, Path], cache: str) -> None:
        self.vm = vm
        self.cache = cache
        self.directory = directory
        self._programs = programs
        for name in ("ours", "reference"):
            answer = vm.ask(f"mount {name} /{name}")
            assert answer == "ok", answer

    def everywhere(self, program: str, before: Sequence[str], after: Sequence[str]) -> Outcome:
        """Runs a program on each share and on the host; `before` and `after` surround the folder's path.

        Raises AssertionError with all outputs unless it succeeds everywhere.
        """
        outputs = []
        for name in ("ours", "reference"):
            words = (f"/{program}", *before, f"/{name}", *after)
            outputs.append((name, *self.vm.try_run(*words, timeout_s=GUEST_TIMEOUT_S)))
        native = [self._host_path(word) for word in before]
        done = run(
            [self._programs[program], *native, self.directory / "native", *after], timeout_s=GUEST_TIMEOUT_S
        )
        outputs.append(("native", done.stdout.decode(errors="replace"), done.status))
        failed = [f"{name} ended with {status}: {text[-2000:]}" for name, text, status in outputs if status]
        assert not failed, "\n".join(failed)
        return Outcome(*(text for _, text, _ in outputs))

    def _host_path(self, word: str) -> str:
        # Scripts are in the guest's root folder, and on the host in the workbench's.
        return str(self.directory / word.removeprefix("/")) if word.startswith("/") else word


@contextmanager
def workbench(cache: str, programs: Mapping[str, Path], scripts: Mapping[str, str]) -> Iterator[Workbench]:
    """A VM with programs, and with `scripts` by name as files, in its root folder."""
    directory = Path(tempfile.mkdtemp(prefix="vmd-"))
    try:
        # The host's part of the tests has other users than root, too.
        directory.chmod(0o755)
        files = dict(programs)
        for name, text in scripts.items():
            files[name] = directory / name
            files[name].write_text(text)
        shares = []
        for name, server in (("ours", STRATO), ("reference", REFERENCE)):
            (directory / name).mkdir()
            # With `none` virtiofsd has no shared mappings; what a policy changes is no result of a call.
            policy = "auto" if (server, cache) == (REFERENCE, "none") else cache
            shares.append(Share(name, directory / name, server, policy))
        (directory / "native").mkdir()
        (directory / "vm").mkdir()
        settings = DeviceVmSettings(guest_image.build(directory, files), shares)
        with DeviceVm(directory / "vm", settings) as vm:
            yield Workbench(vm, directory, programs, cache)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
