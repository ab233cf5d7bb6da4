"""Task events to containerd: one ordered queue, kept while containerd is away.

Owned by Sandbox. `publish` never waits; a single task sends one event after another, so that containerd
sees them in the order in which they happened. An event that containerd refuses is tried again a few times
and then dropped (as containerd's reference publisher does); one that cannot be delivered because
containerd is not there waits until it is back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import time
from typing import NamedTuple, Protocol

from google.protobuf.message import Message

from . import launch
from .errors import DeadlineError, RemoteError, ShimError
from .log import fields
from .protos.generated import events_service_pb2, types_pb2
from .ttrpc.client import TtrpcClient

CALL_TIMEOUT_S = 5.0
MAX_REFUSALS = 5
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 2.0
QUEUE_LIMIT = 16384
"""Events kept while containerd is away; the oldest go first. A container makes about six in its life."""

_SERVICE = ("containerd.services.events.ttrpc.v1.Events", "Forward")
_EXIT_TOPIC = "/tasks/exit"

_log = logging.getLogger("shim.events")


class Envelope(NamedTuple):
    """One event on its way."""

    topic: str
    envelope: types_pb2.Envelope


class Sender(Protocol):
    """Delivers one event; raises ConnectionError (containerd is away) or ShimError (it refuses)."""

    async def send(self, event: Envelope) -> None: ...

    def close(self) -> None: ...


class EventPublisher:
    """The queue and its task."""

    def __init__(self, namespace: str, sender: Sender | None) -> None:
        self._namespace = namespace
        self._sender = sender
        self._queue: collections.deque[Envelope] = collections.deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def publish(self, topic: str, message: Message) -> None:
        """Queue the event *message* for *topic*."""
        if self._sender is None:
            return
        envelope = types_pb2.Envelope(namespace=self._namespace, topic=topic)
        envelope.timestamp.FromNanoseconds(time.time_ns())
        # containerd's type URLs are the bare message names.
        envelope.event.type_url = message.DESCRIPTOR.full_name
        envelope.event.value = message.SerializeToString()
        self._queue.append(Envelope(topic, envelope))
        if len(self._queue) > QUEUE_LIMIT:
            self._drop_oldest()
        self._idle.clear()
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def _drop_oldest(self) -> None:
        # Exits are what containerd cannot find out in another way, so they stay longest.
        victim = next((item for item in self._queue if item.topic != _EXIT_TOPIC), self._queue[0])
        self._queue.remove(victim)
        _log.warning("event dropped, too many wait", extra=fields(topic=victim.topic))

    async def flush(self, timeout_s: float) -> None:
        """Wait until the queue is empty, at most *timeout_s*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def close(self) -> None:
        """Stop; what is still queued is lost."""
        if self._queue:
            _log.warning("events not delivered", extra=fields(count=len(self._queue)))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._sender is not None:
            self._sender.close()

    async def _run(self) -> None:
        while True:
            while self._queue:
                await self._deliver(self._queue[0])
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _deliver(self, event: Envelope) -> None:
        assert self._sender is not None
        refusals = 0
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._sender.send(event)
            except ConnectionError as error:
                _log.debug("containerd is away: %s", error)
            except ShimError as error:
                refusals += 1
                if refusals > MAX_REFUSALS:
                    _log.error("event refused: %s", error, extra=fields(topic=event.topic))
                    break
            else:
                break
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
        if self._queue and self._queue[0] is event:
            self._queue.popleft()


class TtrpcSender:
    """Forwards to containerd's ttrpc address, connecting when there is something to send."""

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("unix://")
        self._client: TtrpcClient | None = None

    async def send(self, event: Envelope) -> None:
        """See Sender."""
        client = await self._connected()
        request = events_service_pb2.ForwardRequest(envelope=event.envelope)
        # The answer is google.protobuf.Empty; any message without required fields reads it.
        try:
            await client.call(
                _SERVICE, request, events_service_pb2.ForwardRequest, timeout_s=CALL_TIMEOUT_S,
                metadata={"containerd-namespace-ttrpc": event.envelope.namespace},
            )  # fmt: skip
        except RemoteError:
            raise
        except (DeadlineError, ShimError) as error:
            self.close()
            if isinstance(error, DeadlineError):
                raise
            raise ConnectionError(str(error)) from error

    async def _connected(self) -> TtrpcClient:
        if self._client is not None and not self._client.closed.done():
            return self._client
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(stream, self._path)
            self._client = await TtrpcClient.connect(stream, peer="containerd")
        except (OSError, TimeoutError) as error:
            stream.close()
            raise ConnectionError(f"Cannot connect to {self._path}: {error}") from error
        return self._client

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


class BinarySender:
    """Runs containerd's publish binary, one process per event: for callers without a ttrpc address."""

    def __init__(self, binary: str, address: str, reaper: launch.Reaper) -> None:
        self._binary = binary
        self._address = address
        self._reaper = reaper

    async def send(self, event: Envelope) -> None:
        """See Sender."""
        argv = [self._binary, "--address", self._address, "publish", "--topic", event.topic]
        argv += ["--namespace", event.envelope.namespace]
        stdin = os.memfd_create("strato-event", os.MFD_CLOEXEC)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(stdin, event.envelope.event.SerializeToString())
            os.lseek(stdin, 0, os.SEEK_SET)
            pid = launch.spawn(argv, fds={0: stdin, 1: null, 2: null})
        finally:
            os.close(stdin)
            os.close(null)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reaper.watch(pid, ended.set_result)
        try:
            status = await asyncio.wait_for(asyncio.shield(ended), CALL_TIMEOUT_S)
        except TimeoutError as error:
            self._reaper.kill(pid)
            raise ConnectionError(f"{self._binary} did not publish within {CALL_TIMEOUT_S:g} s") from error
        if status != 0:
            raise ConnectionError(f"{self._binary} publish failed with status {status}")

    def close(self) -> None:
        """Nothing is kept."""
