"""The QMP server: several clients at a time on one listening unix socket.

Each client is served strictly in order, one command at a time; events go to every client that has finished
its capabilities negotiation. A client that sends garbage, or that does not read, loses its own connection
and harms nobody else. Owned by ``vmm.__main__``, driven by its event loop.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Mapping

from ..errors import QmpCommandError, QmpProtocolError, VmmError, chain_text
from ..log import Log
from ..loop import EventLoop
from ..machine import Machine
from .commands import Commands, version
from .events import event
from .protocol import Message, MessageReader, serialise
from .session import Session

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

MAX_CLIENTS = 16
MAX_OUTPUT_BYTES = 1 << 20
_READ_BYTES = 16384
_FLUSH_TIMEOUT_S = 0.2


class QmpServer:
    """See the module's docstring."""

    def __init__(self, listener_fd: int, *, machine: Machine, loop: EventLoop, log: Log) -> None:
        self._listener = socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self._loop = loop
        self._log = log
        self._commands = Commands(machine)
        self._clients: set[_Client] = set()
        machine.on_event = self.broadcast
        loop.add_reader(self._listener.fileno(), self._on_connection)

    def broadcast(self, name: str, data: Mapping[str, Any]) -> None:
        """Send an event to all clients."""
        message = event(name, data)
        self._log.debug("event", name=name)
        for client in list(self._clients):
            if client.negotiated:
                client.send(message)

    def close(self) -> None:
        """Deliver what is still to be sent, within reason, and close everything."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients):
            client.flush_and_close(_FLUSH_TIMEOUT_S)

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        if len(self._clients) >= MAX_CLIENTS:
            self._log.warn("QMP client refused: there are too many", limit=MAX_CLIENTS)
            connection.close()
            return
        client = _Client(connection, loop=self._loop, log=self._log, commands=self._commands)
        self._clients.add(client)
        client.on_close = lambda: self._clients.discard(client)
        client.start()


class _Client:
    def __init__(self, connection: socket.socket, *, loop: EventLoop, log: Log, commands: Commands) -> None:
        self.negotiated = False
        self.on_close: Callable[[], None] = _nothing
        self._connection = connection
        self._connection.setblocking(False)
        self._fd = connection.fileno()
        self._loop = loop
        self._log = log
        self._commands = commands
        self._reader = MessageReader()
        self._session = Session()
        self._requests: deque[Message] = deque()
        self._output = bytearray()
        self._busy = False
        self._serving = False
        self._closed = False

    def start(self) -> None:
        self.send({"QMP": {"version": version(), "capabilities": []}})
        if not self._closed:
            self._loop.add_reader(self._fd, self._on_readable)

    def send(self, message: Message) -> None:
        if self._closed:
            return
        self._output += serialise(message)
        self._flush()

    def flush_and_close(self, timeout_s: float) -> None:
        if self._output and not self._closed:
            self._connection.settimeout(timeout_s)
            try:
                self._connection.sendall(self._output)
            except OSError as error:
                self._log.debug("QMP client has not read its last messages", cause=error)
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._connection.close()
        self._session.close()
        self.on_close()

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self._connection.send(self._output)]
        except BlockingIOError:
            if len(self._output) > MAX_OUTPUT_BYTES:
                self._log.warn("QMP client dropped: it does not read")
                self.close()
                return
            self._loop.add_writer(self._fd, self._flush)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._fd)

    def _on_readable(self) -> None:
        try:
            data = self._session.receive(self._connection, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            self._requests.extend(self._reader.feed(data))
        except QmpProtocolError as error:
            self._log.warn("QMP client dropped", cause=error)
            self.send(_error("GenericError", f"JSON parse error: {error}"))
            self.close()
            return
        self._serve()

    def _serve(self) -> None:
        if self._serving:
            return  # a command was answered at once: the loop below goes on
        self._serving = True
        while self._requests and not self._busy and not self._closed:
            self._execute(self._requests.popleft())
        self._serving = False
        if self._closed:
            return
        if self._busy:
            self._loop.remove_reader(self._fd)  # back-pressure: no further input until this is answered
        else:
            self._loop.add_reader(self._fd, self._on_readable)

    def _execute(self, request: Message) -> None:
        request_id = request.get("id")
        self._busy = True

        def done(result: Any) -> None:
            self._busy = False
            if isinstance(result, QmpCommandError):
                reply = _error(result.error_class, result.description)
            elif isinstance(result, VmmError):
                reply = _error("GenericError", chain_text(result))
            else:
                reply = {"return": result}
            if "id" in request:
                reply["id"] = request_id
            self.send(reply)
            self._serve()

        try:
            self._dispatch(request, done)
        except VmmError as error:
            done(error)

    def _dispatch(self, request: Message, done: Any) -> None:
        unknown = set(request) - {"execute", "arguments", "id"}
        if unknown or "execute" not in request:
            member = min(unknown) if unknown else "execute"
            what = "is unexpected" if unknown else "is missing"
            raise QmpCommandError("GenericError", f"QMP input member '{member}' {what}")
        name, arguments = request["execute"], request.get("arguments", {})
        if self.negotiated:
            self._commands.execute(name, arguments, done, self._session)
        elif name == "qmp_capabilities":
            self._negotiate(arguments)
            done({})
        else:
            raise QmpCommandError(
                "CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"
            )

    def _negotiate(self, arguments: object) -> None:
        from .schema import check_arguments

        enable = check_arguments("qmp_capabilities", arguments).get("enable", [])
        if enable:
            raise QmpCommandError("GenericError", f"Capability {enable[0]} is not available")
        self.negotiated = True


def _nothing() -> None:
    return


def _error(error_class: str, description: str) -> Message:
    return {"error": {"class": error_class, "desc": description}}
