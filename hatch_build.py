"""The wheel's build hook: builds the native parts and puts them beside the packages, as ``vmm/_native``.

Called by hatchling. The wheel holds no extension module, so one wheel serves every Python 3 on this platform.
The guest kernel and image are not in it: they are built by ``make build``.
"""

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STATIC_FLAGS = "-C target-feature=+crt-static -C relocation-model=static"


class NativePartsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs cargo as vmm/native/README.md says; honours CARGO_TARGET_DIR."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the native parts to a wheel; an editable install uses the checkout's own."""
        if self.target_name != "wheel" or version == "editable":
            return
        for product in self._build():
            build_data["force_include"][str(product)] = f"vmm/_native/{product.name}"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def _build(self) -> list[Path]:
        workspace = Path(self.root) / "vmm" / "native"
        target = Path(os.environ.get("CARGO_TARGET_DIR", workspace / "target"))
        triple = f"{os.uname().machine}-unknown-linux-gnu"
        cargo = ["cargo", "build", "--locked", "--manifest-path", str(workspace / "Cargo.toml")]
        environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        programs = ["-p", "strato-launch", "-p", "strato-holder"]
        subprocess.run(
            [*cargo, "--profile", "static", "--target", triple, *programs],
            env={**environment, "RUSTFLAGS": _STATIC_FLAGS},
            check=True,
        )
        libraries = ["-p", "strato-sys", "-p", "strato-abi"]
        subprocess.run([*cargo, "--release", *libraries], env=environment, check=True)
        static = target / triple / "static"
        shared = target / "release"
        return [
            static / "strato-launch",
            static / "strato-holder",
            shared / "libstrato_sys.so",
            shared / "libstrato_vmm.so",
        ]
