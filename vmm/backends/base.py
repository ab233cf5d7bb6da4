"""The seam between strato-vmm and whatever serves a device over vhost-user.

Whatever serves a device hands out a `Backend` with a connected vhost-user socket for the engine. Our own
cores run in this process (`vmm.backends.in_process`) and give one end of a socketpair. Reference programs are
started by a `BackendStarter`, which is given a device of the plan and a private folder.
"""

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from ..boards.base import DevicePlan
from ..errors import HostError
from ..processes import Process, ProcessTable
from ..record import record

CONNECT_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.0005
_LAST_BACKOFF_S = 0.01


@record(frozen=True)
class Backend:
    """A backend that the engine can talk to."""

    device: DevicePlan
    connection: socket.socket | FileIO
    """The front end's side of its vhost-user socket; or, open as O_PATH, the socket to connect to."""
    program: str
    """Name of what serves it, for `x-strato-info`."""
    pid: int


class BackendStarter(ABC):
    """Starts the program that serves one kind of device."""

    @abstractmethod
    def start(self, device: DevicePlan, directory: Path, processes: ProcessTable) -> "PendingBackend":
        """Start serving; returns without waiting for the backend to be ready. Raises HostError."""


@record(frozen=True)
class PendingBackend:
    """A backend that has been started and may not listen yet.

    Starting all backends first and connecting afterwards lets them come up side by side.
    """

    device: DevicePlan
    process: Process
    socket_path: Path

    def connect(self, pump: Callable[[], None]) -> Backend:
        """Connect as its front end and remove the socket's name, which nobody else may use.

        ``pump`` is called between attempts, to notice the backend's death. Raises HostError.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        backoff = _FIRST_BACKOFF_S
        while True:
            try:
                connection.connect(str(self.socket_path))
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                pump()
                if not self.process.alive or time.monotonic() > deadline:
                    connection.close()
                    raise HostError(
                        f"Backend of device {self.device.id} does not listen on {self.socket_path}: "
                        f"{self.process.describe_exit()}"
                    ) from error
            # No inotify here: the wait is a few milliseconds at the most and happens once per VM.
            time.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_S)
        self.socket_path.unlink(missing_ok=True)
        return Backend(
            device=self.device, connection=connection, program=self.process.name, pid=self.process.pid
        )
