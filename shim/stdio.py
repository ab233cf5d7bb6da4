"""A process's stdin, stdout and stderr: descriptors of the host, streams of the guest, the pump between.

Python never touches a byte: the native pump (vmm.sys.Pump) moves them on its own thread and reports ends
and errors through one descriptor, which `PumpHub` watches on the loop. One hub per sandbox, one `ProcessIo`
per process; a ProcessIo is told about ends by Container and closed by Delete.

Ends are byte counts (agent.proto): output is complete when the number of bytes the guest named has been
moved; input ends in the guest after the bytes that were read here. TaskExit and Wait never wait for any of
this, Delete waits DRAIN_TIMEOUT_S at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import launch
from .agent_proto import client as agent_client
from .endpoints import Endpoint, Endpoints, StdioRequest, open_endpoints, open_input
from .log import fields

if TYPE_CHECKING:
    from vmm.sys import Pump, PumpEvent

DRAIN_TIMEOUT_S = 10.0
LOGGER_TERM_TIMEOUT_S = 12.0
"""Between SIGTERM and SIGKILL for a logger that does not end with its input."""

_log = logging.getLogger("shim.stdio")


class PumpHub:
    """The sandbox's pump on the loop: one callback per stream."""

    def __init__(self) -> None:
        from vmm import sys as native

        self.pump: Pump = native.Pump()
        self._callbacks: dict[int, Callable[[PumpEvent], None]] = {}
        self._next_tag = 1
        self._fd = self.pump.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._dispatch)

    def register(self, callback: Callable[[PumpEvent], None]) -> int:
        """A tag whose events *callback* gets."""
        tag = self._next_tag
        self._next_tag += 1
        self._callbacks[tag] = callback
        return tag

    def unregister(self, tag: int) -> None:
        """No events for *tag* any more."""
        self._callbacks.pop(tag, None)

    def close(self) -> None:
        """Stop the pump."""
        asyncio.get_running_loop().remove_reader(self._fd)
        self.pump.close()

    def _dispatch(self) -> None:
        for event in self.pump.events():
            callback = self._callbacks.get(event.tag)
            if callback is not None:
                callback(event)


class _Stream:
    """One direction of one stream while the pump moves it."""

    def __init__(self, hub: PumpHub, endpoint: Endpoint, guest: socket.socket) -> None:
        self._hub = hub
        self._endpoint = endpoint
        self._guest = guest
        self._handle = -1
        self._tag = -1
        self.done = asyncio.Event()

    def start(self, src: int, dst: int, on_event: Callable[[PumpEvent], None], *, output: bool) -> None:
        """Begin to move bytes from *src* to *dst*."""
        self._tag = self._hub.register(on_event)
        # A client that vanished must not stop the process: its output is counted and thrown away.
        self._handle = self._hub.pump.add(src, dst, tag=self._tag, keep_on_dst_error=output, close_dst=output)

    def limit(self, total: int) -> None:
        """Finish after *total* bytes in all."""
        if self._handle >= 0:
            self._hub.pump.set_limit(self._handle, total)

    def close(self) -> None:
        """Stop and close everything. May be called twice."""
        if self._handle >= 0:
            self._hub.unregister(self._tag)
            self._hub.pump.remove(self._handle)
            self._handle = -1
        self._endpoint.close()
        self._guest.close()
        self.done.set()

    def close_endpoint_descriptor(self) -> None:
        """Drop our own copy of the host's descriptor; the pump has one."""
        os.close(self._endpoint.fd)
        self._endpoint.fd = -1

    def close_spare(self) -> None:
        """Let a fifo's end be seen."""
        self._endpoint.close_spare()


class ProcessIo:
    """The stdio of one process, from Create or Exec to Delete."""

    def __init__(self, hub: PumpHub, reaper: launch.Reaper, request: StdioRequest) -> None:
        self._hub = hub
        self._reaper = reaper
        self.request = request
        self._endpoints: Endpoints | None = None
        self._streams: dict[str, _Stream] = {}
        self._exit_counts: dict[str, int] = {}
        self._eof_known: set[str] = set()
        self._close_requested = False
        self._stdin_guest: socket.socket | None = None
        self._stdin_ended: Callable[[int], None] | None = None

    async def open(self, *, container_id: str, namespace: str) -> None:
        """Open the host's side. Raises HostError, InvalidArgumentError, DeadlineError."""
        self._endpoints = await open_endpoints(
            self.request, container_id=container_id, namespace=namespace, reaper=self._reaper
        )

    def wants(self, name: str) -> bool:
        """Whether stream *name* is connected to anything."""
        if name == "stdin":
            return bool(self.request.stdin)
        return self._endpoints is not None and name in self._endpoints.streams

    async def connect(self, vsock_path: str, prefix: str, *, stdin_ended: Callable[[int], None]) -> None:
        """Connect the guest's streams "<prefix>/<name>" and start to move output.

        *stdin_ended* is called with the number of bytes once input has ended. Raises SandboxError.
        """
        self._stdin_ended = stdin_ended
        names = [name for name in ("stdin", "stdout", "stderr") if self.wants(name)]
        sockets = await asyncio.gather(
            *(agent_client.connect_stream(vsock_path, f"{prefix}/{name}") for name in names),
            return_exceptions=True,
        )
        failures = [result for result in sockets if isinstance(result, BaseException)]
        if failures:
            for result in sockets:
                if isinstance(result, socket.socket):
                    result.close()
            raise failures[0]
        for name, guest in zip(names, sockets, strict=True):
            assert isinstance(guest, socket.socket)
            if name == "stdin":
                self._stdin_guest = guest
            else:
                self._start_output(name, guest)

    def _start_output(self, name: str, guest: socket.socket) -> None:
        assert self._endpoints is not None
        endpoint = self._endpoints.streams.pop(name)
        stream = _Stream(self._hub, endpoint, guest)
        self._streams[name] = stream
        stream.start(guest.fileno(), endpoint.fd, lambda event: self._output_event(name, event), output=True)
        stream.close_endpoint_descriptor()
        if name in self._eof_known:
            stream.limit(self._exit_counts[name])

    def start_input(self) -> None:
        """Open stdin and start to move input; called by Start. Raises HostError.

        Not at Create: a client's writing end opens, and its copying begins, when a reader opens the fifo.
        containerd's `ctr` calls CloseIO at the end of its input only if its Create has returned by then.
        """
        guest, self._stdin_guest = self._stdin_guest, None
        if guest is None:
            return
        try:
            endpoint = open_input(self.request.stdin)
        except BaseException:
            guest.close()
            raise
        stream = _Stream(self._hub, endpoint, guest)
        self._streams["stdin"] = stream
        stream.start(endpoint.fd, guest.fileno(), self._stdin_event, output=False)
        # From here on the pump's copies are the only ones, so that an end is an end.
        stream.close_endpoint_descriptor()
        if self._close_requested:
            stream.close_spare()

    def close_stdin(self) -> None:
        """CloseIO: input ends once the client has closed its end too and everything was read."""
        self._close_requested = True
        stream = self._streams.get("stdin")
        if stream is not None:
            stream.close_spare()

    def end_of_stream(self, name: str, total: int) -> None:
        """The guest says that output *name* ends after *total* bytes."""
        self._exit_counts[name] = total
        self._eof_known.add(name)
        if name in self._streams:
            self._streams[name].limit(total)

    def exited(self, counts: dict[str, int]) -> None:
        """The process is gone; its own output ends after *counts* bytes (others may still write)."""
        for name, total in counts.items():
            self._exit_counts.setdefault(name, total)
        stdin = self._streams.pop("stdin", None)
        if stdin is not None:
            stdin.close()

    async def drain(self) -> None:
        """Wait until what the process wrote has reached its destination, at most DRAIN_TIMEOUT_S."""
        waiting = []
        for name, stream in self._streams.items():
            if name in self._exit_counts and not stream.done.is_set():
                stream.limit(self._exit_counts[name])
                waiting.append(stream.done.wait())
        if not waiting:
            return
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await asyncio.gather(*waiting)
        except TimeoutError:
            _log.warning("output was not read to its end", extra=fields(stdout=self.request.stdout))

    def abandon(self) -> None:
        """The guest is gone: nothing more will come, so every output ends where it is."""
        for stream in list(self._streams.values()):
            stream.close()

    def close(self) -> None:
        """Close everything; end a logger. May be called twice."""
        for stream in self._streams.values():
            stream.close()
        if self._stdin_guest is not None:
            self._stdin_guest.close()
            self._stdin_guest = None
        if self._endpoints is not None:
            self._endpoints.close()
            if self._endpoints.logger_pid:
                self._end_logger(self._endpoints.logger_pid)
            self._endpoints = None

    def _end_logger(self, pid: int) -> None:
        # Its input has ended; most end by themselves. containerd's way: SIGTERM, SIGKILL after 12 s.
        import signal

        loop = asyncio.get_running_loop()
        loop.call_later(1.0, self._reaper.kill, pid, signal.SIGTERM)
        loop.call_later(LOGGER_TERM_TIMEOUT_S, self._reaper.kill, pid)

    def _stdin_event(self, event: PumpEvent) -> None:
        from vmm.sys import PumpEventKind

        stream = self._streams.get("stdin")
        if stream is None:
            return
        if event.kind == PumpEventKind.SRC_EOF and self._stdin_ended is not None:
            self._stdin_ended(event.bytes)
        elif event.kind in (PumpEventKind.SRC_ERROR, PumpEventKind.DST_ERROR):
            _log.debug("stdin broke", extra=fields(errno=event.errno))
            if event.kind == PumpEventKind.SRC_ERROR and self._stdin_ended is not None:
                self._stdin_ended(event.bytes)

    def _output_event(self, name: str, event: PumpEvent) -> None:
        from vmm.sys import PumpEventKind

        if event.kind == PumpEventKind.DST_ERROR:
            _log.debug("reader of %s is gone", name, extra=fields(errno=event.errno))
            return  # the pump goes on counting
        stream = self._streams.get(name)
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
