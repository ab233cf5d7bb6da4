"""`make demo`: a private containerd runs one container in a microVM, which shows whose kernel it has.

Builds everything first. Everything it starts is ended and its folder removed, also when it fails; the
machine's own containerd, when there is one, is not touched.
"""

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from . import containerd, debian, image, layout, prerequisites, product, testtools
from .cache import Cache
from .errors import CommandError, PrerequisiteError, ToolError
from .progress import say, step

_RUNTIME = "io.containerd.strato.v2"
_IMAGE = "docker.io/strato/demo:latest"
_DEADLINE_S = 120.0

# Of the line "sandbox ended" in shim.sandbox.
_PHASES = re.compile(r'phases="(\{[^"}]*\})"')

# What the container says. `nproc` and MemTotal are the virtual machine's, not the host's.
_GREETING = """
echo "Hello from a container inside its own microVM."
echo "  kernel      $(uname -sr)"
echo "  processor   $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) of them"
echo "  memory      $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
echo "  up since    $(cut -d. -f1 /proc/uptime) s"
echo "  processes   $(ls -d /proc/[0-9]* | wc -l)"
"""


def run_demo() -> None:
    """Build, run, show, clean up. Raises ToolError when the container did not speak."""
    prerequisites.check()
    if os.geteuid() != 0:
        raise PrerequisiteError("containerd needs root here; run: sudo make demo")
    cache = Cache()
    product.build(cache)
    debian.install(debian.TEST_PACKAGES)
    testtools.ensure(cache)
    folder = containerd.scratch_directory("strato-demo-")
    try:
        _demonstrate(folder)
    except containerd.ContainerdError as error:
        raise ToolError("The private containerd of the demo failed") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _demonstrate(folder: Path) -> None:
    newest = layout.TEST_TOOLS / f"{testtools.GO_TOOLS[0].name}-{testtools.GO_TOOLS[0].version}"
    config = folder / "config.toml"
    state = folder / "run"
    config.write_text(f'[shim]\nstate_root = "{state}"\n')
    settings = containerd.ContainerdSettings(
        bin_dir=newest / "bin",
        directory=folder / "c",
        path=(layout.BIN,),
        env={"STRATO_CONFIG": str(config)},
    )
    archive = folder / "image.tar"
    layer = image.layer_tar(image.busybox_entries(image.find_busybox()))
    archive.write_bytes(image.docker_archive(_IMAGE, [layer], image.ImageConfig()))
    daemon = containerd.Containerd(settings)
    with step(f"Start a private containerd {testtools.GO_TOOLS[0].version}"):
        daemon.start()
    try:
        with step("Import an image made of busybox"):
            _call(daemon, daemon.ctr_command("images", "import", archive))
        run_options = ("run", "--rm", f"--runtime={_RUNTIME}")
        command = daemon.ctr_command(*run_options, _IMAGE, "demo", "sh", "-c", _GREETING)
        say(f"Run: {shlex.join(command[:-1])} <greeting>")
        begin = time.monotonic()
        output = _call(daemon, command)
        say(f"The container ran, from ctr's start to its end, for {time.monotonic() - begin:.2f} s and said:")
        for line in output.splitlines():
            say(f"    {line}")
        host = platform.release()
        say(f"The host's kernel is {platform.system()} {host}, on {len(os.sched_getaffinity(0))} processors.")
        if f"{platform.system()} {host}\n" in output or "Hello" not in output:
            raise ToolError("The container did not show a kernel of its own:\n" + output)
        _show_phases(daemon.log_path.read_text(errors="replace"))
    finally:
        with step("Stop and clean up"):
            daemon.close()


def _call(daemon: containerd.Containerd, command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            env=daemon.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = f"No end within {_DEADLINE_S:.0f} s: {shlex.join(command)}\n{daemon.log_tail()}"
        raise CommandError(text) from error
    if done.returncode != 0:
        text = f"Status {done.returncode} from: {shlex.join(command)}\n{done.stderr}"
        raise CommandError(f"{text}\ncontainerd's log:\n{daemon.log_tail()}")
    return done.stdout


def _show_phases(log: str) -> None:
    """Print how long the sandbox took to reach each point, from the shim's last line in containerd's log."""
    found = _PHASES.findall(log)
    if not found:
        say("The shim's log shows no phases")
        return
    previous = 0.0
    say("Phases, in milliseconds since the shim began:")
    for name, reached_ms in sorted(ast.literal_eval(found[-1]).items(), key=lambda phase: phase[1]):
        say(f"    {reached_ms:8.1f}  +{reached_ms - previous:7.1f}  {name}")
        previous = reached_ms
