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
from tools.cache import Cache, digest_files
from tools.progress import capture

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


def compile_program(name: str) -> Path:
    """Compiles one of `PROGRAMS` as a static one, unless the cache has it; its path."""
    flags = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-static", "-s")
    sources = [_SOURCES / source for source in PROGRAMS[name]]

    def build(output: Path) -> None:
        subprocess.run(["gcc", *flags, "-o", output / name, *sources], check=True)

    inputs = {
        "source": digest_files([*sources, *_SOURCES.glob("*.h")], _SOURCES),
        "flags": " ".join(flags),
        "compiler": capture(["gcc", "-dumpfullversion"]).strip(),
    }
    return Cache().entry("guest-program", inputs, build) / name


@dataclass(frozen=True)
class Policy:
    """What the guest may remember of a share, and whether it may keep back what it writes."""

    cache: str = "auto"
    writeback: bool = False


class Workbench:
    """The running VM; made by `workbench`."""

    def __init__(self, vm: DeviceVm, directory: Path, programs: Mapping[str, Path], policy: Policy) -> None:
        self.vm = vm
        self.policy = policy
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
def workbench(
    policy: Policy, programs: Mapping[str, Path], scripts: Mapping[str, str]
) -> Iterator[Workbench]:
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
            cache = "auto" if (server, policy.cache) == (REFERENCE, "none") else policy.cache
            shares.append(Share(name, directory / name, server, cache, policy.writeback))
        (directory / "native").mkdir()
        (directory / "vm").mkdir()
        settings = DeviceVmSettings(guest_image.build(directory, files), shares)
        with DeviceVm(directory / "vm", settings) as vm:
            yield Workbench(vm, directory, programs, policy)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
