"""`make kernel-report`: boots the guest kernel and says what it costs, as Markdown for docs/guest-kernel.md.

Two series: undisturbed boots, for the whole time; and boots that log every initcall, for the share of each
fragment. Needs build/venv, see `tools.bare_boot`.
"""

import json
import statistics
import sys

from rootfs.kernel import report as analysis

from . import bare_boot, guest
from .cache import Cache
from .progress import step


def report(cache: Cache, *, boots: int) -> None:
    """Measure `boots` boots of each series and print the tables. Raises BootError, ToolError."""
    kernel = guest.kernel(cache)
    image = bare_boot.probe_image(cache)
    # The first boot fills the page cache.
    bare_boot.boot(kernel / "vmlinux", image)
    with step(f"Boot vmlinux {boots} times"):
        vmlinux = [bare_boot.boot(kernel / "vmlinux", image) for _ in range(boots)]
    with step(f"Boot bzImage {boots} times"):
        bzimage = [bare_boot.boot(kernel / "bzImage", image) for _ in range(boots)]
    with step(f"Boot vmlinux {boots} times with initcall_debug"):
        arguments = ("initcall_debug", "log_buf_len=4M", "--", "log")
        logs = [bare_boot.boot(kernel / "vmlinux", image, arguments).console for _ in range(boots)]
    facts = json.loads((kernel / "kernel.json").read_text())
    table = analysis.costs(
        [analysis.initcall_times(log) for log in logs],
        json.loads((kernel / "initcalls.json").read_text()),
        json.loads((kernel / "sizes.json").read_text()),
    )
    write = sys.stdout.write
    write(f"\nKernel {facts['release']}: {facts['enabled_symbols']} options built in, ")
    write(
        f"vmlinux {facts['vmlinux_bytes'] / 2**20:.1f} MiB, "
        f"bzImage {facts['bzimage_bytes'] / 2**20:.1f} MiB\n\n"
    )
    for name, series in (("vmlinux", vmlinux), ("bzImage", bzimage)):
        write(_series_line(name, series))
    write("\nGuest time, median over the logged boots (logging itself costs time):\n\n")
    marks = [analysis.milestones(log) for log in logs]
    for name in marks[0]:
        median = statistics.median(mark[name] for mark in marks if name in mark)
        write(f"- {name}: {median:.3f} s\n")
    write("\n" + analysis.render(table))


def _series_line(name: str, series: list[bare_boot.BareBoot]) -> str:
    raw = " ".join(f"{boot.seconds:.2f}" for boot in series)
    return (
        f"- {name}, whole QEMU process: median {statistics.median(boot.seconds for boot in series):.2f} s, "
        f"best {min(boot.seconds for boot in series):.2f} s, "
        f"processor time {statistics.median(boot.cpu_seconds for boot in series):.2f} s (raw: {raw})\n"
    )
