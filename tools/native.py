"""Native builds: the host's Rust workspace, the guest agent, and the vsock backend from crates.io.

cargo works in a workspace of the cache (its own incremental rules apply there); what it yields is copied to
an entry only where something content-addressed depends on it, and otherwise linked straight from there.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from . import layout
from .cache import Cache
from .progress import capture, run, step

TARGET = "x86_64-unknown-linux-gnu"
VHOST_DEVICE_VSOCK = "0.3.0"

# Fully static: these run in an empty root, or as a holder that must cost next to nothing.
_STATIC_FLAGS = "-C target-feature=+crt-static -C relocation-model=static"


def rustc_version() -> str:
    """The compiler's full version text, a part of every key here."""
    return capture(["rustc", "-vV"])


def host_workspace(cache: Cache) -> AbstractContextManager[Path]:
    """cargo's target folder of vmm/native, locked for the time of the context."""
    return cache.workspace("native", _workspace_inputs(layout.NATIVE))


def build_host(cache: Cache) -> dict[str, Path]:
    """Build vmm/native; returns product name to file.

    Raises CommandError with cargo's last lines.
    """
    with host_workspace(cache) as target, step("Native: programs and libraries"):
        log = layout.LOGS / "native.log"
        environment = {"CARGO_TARGET_DIR": str(target)}
        common = ("nice", "cargo", "build", "--locked")
        programs = ("-p", "strato-launch", "-p", "strato-holder")
        run(
            [*common, "--profile", "static", "--target", TARGET, *programs],
            log=log,
            cwd=layout.NATIVE,
            env={**environment, "RUSTFLAGS": _STATIC_FLAGS},
        )
        libraries = ("-p", "strato-sys", "-p", "strato-abi")
        run([*common, "--release", *libraries], log=log, cwd=layout.NATIVE, env=environment)
    static = target / TARGET / "static"
    return {
        "strato-launch": static / "strato-launch",
        "strato-holder": static / "strato-holder",
        "strato-vhost-device": target / "release" / "strato-vhost-device",
        "libstrato_sys.so": target / "release" / "libstrato_sys.so",
        "libstrato_vmm.so": target / "release" / "libstrato_vmm.so",
    }


def build_agent(cache: Cache) -> Path:
    """Build guest-agent and return its static program. Raises CommandError."""
    with cache.workspace("agent", _workspace_inputs(layout.AGENT)) as target, step("Native: strato-agent"):
        run(
            ["nice", "cargo", "build", "--release", "--locked", "--target", TARGET],
            log=layout.LOGS / "agent.log",
            cwd=layout.AGENT,
            env={"CARGO_TARGET_DIR": str(target)},
        )
    return target / TARGET / "release" / "strato-agent"


def vhost_device_vsock(cache: Cache) -> Path:
    """The reference vsock backend at its pinned version. Raises CommandError."""

    def build(output: Path) -> None:
        with step(f"Crate: vhost-device-vsock {VHOST_DEVICE_VSOCK}"):
            run(
                [
                    *("nice", "cargo", "install", "--locked", "--no-track", "--root", output),
                    *("--version", VHOST_DEVICE_VSOCK, "vhost-device-vsock"),
                ],
                log=layout.LOGS / "vhost-device-vsock.log",
                env={"CARGO_PROFILE_RELEASE_STRIP": "true", "CARGO_TARGET_DIR": str(output / "target")},
            )
            run(["rm", "-rf", output / "target"], log=layout.LOGS / "vhost-device-vsock.log")

    inputs = {"version": VHOST_DEVICE_VSOCK, "rustc": rustc_version()}
    return cache.entry("vhost-device-vsock", inputs, build) / "bin" / "vhost-device-vsock"


def _workspace_inputs(folder: Path) -> dict[str, str]:
    # The checkout is named because cargo's fingerprints hold paths: two checkouts sharing one folder
    # would rebuild each other's work for ever.
    return {
        "checkout": os.fspath(folder),
        "lock": (folder / "Cargo.lock").read_text(),
        "rustc": rustc_version(),
    }
