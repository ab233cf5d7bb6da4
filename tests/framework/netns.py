"""Named network namespaces joined by veth pairs, as CNI would leave them for a container.

A `Network` owns two namespaces: `peer` (the host's side, made apart so that the host's own interfaces are
left alone) and `inside`, which a container joins by path. Leaving the context deletes both.
"""

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from .command import Background, Result, run


class Network:
    """A pair of namespaces; interfaces are added with `link`."""

    def __init__(self, name: str) -> None:
        self.peer = f"{name}p"
        self.inside = f"{name}i"
        for namespace in (self.peer, self.inside):
            _ip("netns", "add", namespace)
            _ip("-netns", namespace, "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in (self.peer, self.inside):
            _ip("netns", "delete", namespace)

    @property
    def path(self) -> Path:
        """The path of the container's namespace."""
        return Path("/run/netns") / self.inside

    def link(self, number: int, *, mtu: int = 1500) -> None:
        """Adds interface eth<number> with 10.99.<number>.2/24 and fd99:<number>::2/64; the peer has .1."""
        outer, inner = f"veth{number}", f"eth{number}"
        _ip("-netns", self.peer, "link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("-netns", self.peer, "link", "set", inner, "netns", self.inside)
        for namespace, device, host in ((self.peer, outer, 1), (self.inside, inner, 2)):
            _ip("-netns", namespace, "link", "set", device, "mtu", str(mtu), "up")
            _ip("-netns", namespace, "address", "add", f"10.99.{number}.{host}/24", "dev", device)
            address = f"fd99:{number}::{host}/64"
            _ip("-netns", namespace, "-6", "address", "add", address, "dev", device, "nodad")

    def default_route(self, number: int) -> None:
        """Sends everything else of the container through the peer of eth<number>."""
        _ip("-netns", self.inside, "route", "add", "default", "via", f"10.99.{number}.1")

    def from_peer(self, *command: str, stdin: bytes | None = None, timeout_s: float = 20.0) -> Result:
        """Runs a command on the peer's side."""
        return run(self._command(command), stdin=stdin, timeout_s=timeout_s)

    def serve_from_peer(self, *command: str) -> Background:
        """Starts a command on the peer's side."""
        return Background(self._command(command))

    def mac(self, number: int) -> str:
        """The hardware address of eth<number> as the host has it."""
        text = _ip("-netns", self.inside, "-brief", "link", "show", f"eth{number}")
        return text.split()[2]

    def links_inside(self) -> list[str]:
        """Interfaces of the container's namespace as the host sees them."""
        text = _ip("-netns", self.inside, "-oneline", "link", "show")
        return [line.split(": ")[1].partition("@")[0] for line in text.splitlines()]

    def _command(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.peer}", *command]


def unique_name() -> str:
    """A short namespace name that no other test process uses."""
    return f"st{os.getpid()}"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
