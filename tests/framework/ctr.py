"""`ctr` as an object: typed results, a deadline on every call, one containerd namespace per daemon.

A `Ctr` holds no state but the daemon it talks to and may be used from several threads.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.containerd import Containerd

from .command import DEFAULT_TIMEOUT_S, Background, Result, run
from .terminal import Terminal

IMAGE = "docker.io/strato/busybox:latest"
_SERIAL = itertools.count(1)


@dataclass(frozen=True)
class Task:
    """One row of `ctr task ls`."""

    container_id: str
    pid: int
    status: str


class Ctr:
    """The command line client of one daemon, set to one runtime."""

    def __init__(self, daemon: Containerd, *, runtime: str, namespace: str, cgroup: str) -> None:
        self.daemon = daemon
        self.runtime = runtime
        self.namespace = namespace
        self.cgroup = cgroup
        self.issued: list[str] = []
        """All ids that `new_id` gave out, for whoever looks for what their containers left."""
        self._env = {**daemon.environment(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}

    def new_id(self, stem: str = "c") -> str:
        """A container id that no other test of this process uses."""
        self.issued.append(f"{stem}-{os.getpid()}-{next(_SERIAL)}")
        return self.issued[-1]

    def command(self, *arguments: str | Path) -> list[str]:
        """A complete command line."""
        return self.daemon.ctr_command(*arguments, namespace=self.namespace)

    def call(
        self, *arguments: str | Path, stdin: bytes | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        """Runs `ctr` to its end; any status is returned."""
        return run(self.command(*arguments), env=self._env, stdin=stdin, timeout_s=timeout_s)

    def background(self, *arguments: str | Path) -> Background:
        """Starts `ctr` beside the test."""
        return Background(self.command(*arguments), env=self._env)

    def terminal(self, *arguments: str | Path, rows: int = 24, columns: int = 80) -> Terminal:
        """Starts `ctr` on a terminal of its own."""
        return Terminal(self.command(*arguments), env=self._env, rows=rows, columns=columns)

    def run_arguments(
        self,
        container_id: str,
        process: Sequence[str],
        *options: str | Path,
        image: str | Path = IMAGE,
    ) -> list[str | Path]:
        """The words of `run` for one container of this runtime, in this test's control group."""
        fixed = ("run", "--runtime", self.runtime, "--cgroup", f"/{self.cgroup}/{container_id}")
        return [*fixed, *options, image, container_id, *process]

    def run(
        self,
        *process: str,
        options: Sequence[str | Path] = (),
        stdin: bytes | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        container_id: str | None = None,
    ) -> Result:
        """`ctr run --rm` of one command in the busybox image; the result is the container's."""
        name = container_id or self.new_id()
        return self.call(
            *self.run_arguments(name, process, "--rm", *options), stdin=stdin, timeout_s=timeout_s
        )

    def run_detached(
        self, *process: str, options: Sequence[str | Path] = (), timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> str:
        """`ctr run --detach`; returns the container's id. The caller removes it (`remove`)."""
        name = self.new_id()
        words = self.run_arguments(name, process, "--detach", "--null-io", *options)
        self.call(*words, timeout_s=timeout_s).check()
        return name

    def run_spec(self, container_id: str, spec: Path, *options: str | Path) -> list[str | Path]:
        """The words of `run` for a container made of a complete config.json (which names its root)."""
        return ["run", "--runtime", self.runtime, *options, "--config", spec, container_id]

    def tasks(self) -> dict[str, Task]:
        """All tasks of the namespace by container id."""
        rows = self.call("task", "ls").check().text.splitlines()[1:]
        found = (row.split() for row in rows)
        return {words[0]: Task(words[0], int(words[1]), words[2]) for words in found}

    def containers(self) -> list[str]:
        """The ids of all containers of the namespace."""
        return self.call("container", "ls", "-q").check().text.split()

    def exec(
        self,
        container_id: str,
        *process: str,
        options: Sequence[str] = (),
        stdin: bytes | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Result:
        """`ctr task exec` to its end."""
        name = self.new_id("e")
        words = ("task", "exec", "--exec-id", name, *options, container_id, *process)
        return self.call(*words, stdin=stdin, timeout_s=timeout_s)

    def kill(self, container_id: str, signal: str = "SIGKILL", *options: str) -> Result:
        """`ctr task kill`; any status is returned."""
        return self.call("task", "kill", "--signal", signal, *options, container_id)

    def remove(self, container_id: str) -> None:
        """Kills and deletes task and container, whichever of them exist."""
        self.call("task", "delete", "--force", container_id)
        self.call("container", "delete", container_id)

    def remove_all(self) -> None:
        """Removes everything in the namespace but images."""
        for container_id in self.containers():
            self.remove(container_id)

    def metrics(self, container_id: str) -> Mapping[str, str]:
        """`ctr task metrics` as name and value."""
        rows = self.call("task", "metrics", container_id).check().text.splitlines()
        return {words[0]: words[1] for words in (row.split() for row in rows) if len(words) == 2}
