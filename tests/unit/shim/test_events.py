"""The event queue: order, refusals, absence of containerd."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from shim import events
from shim.errors import InvalidArgumentError
from shim.protos.generated import events_pb2, events_service_pb2
from shim.ttrpc.server import TtrpcServer
from shim.ttrpc.service import Method

pytestmark = pytest.mark.unit

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class FakeSender:
    """Delivers into a list, unless the next planned outcome is an error."""

    def __init__(self, outcomes: list[Exception | None] | None = None) -> None:
        self.outcomes = outcomes or []
        self.delivered: list[events.Envelope] = []
        self.attempts = 0

    async def send(self, event: events.Envelope) -> None:
        self.attempts += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        await asyncio.sleep(0)
        if outcome is not None:
            raise outcome
        self.delivered.append(event)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(events, "RETRY_MAX_S", 0.002)


def publish_all(publisher: events.EventPublisher, count: int) -> None:
    for number in range(count):
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id=f"c{number}"))


def ids(delivered: list[events.Envelope]) -> list[str]:
    return [events_pb2.TaskExit.FromString(item.envelope.event.value).container_id for item in delivered]


def run_with(sender: FakeSender, count: int) -> None:
    async def run() -> None:
        publisher = events.EventPublisher("n", sender)
        publish_all(publisher, count)
        await publisher.flush(10)
        await publisher.close()

    asyncio.run(run())


def test_publish_order_is_kept_and_envelope_is_containerds() -> None:
    sender = FakeSender()

    run_with(sender, 20)

    assert ids(sender.delivered) == [f"c{number}" for number in range(20)]
    envelope = sender.delivered[0].envelope
    assert (envelope.namespace, envelope.topic) == ("n", "/tasks/exit")
    assert envelope.event.type_url == "containerd.events.TaskExit"
    assert envelope.timestamp.seconds > 1_700_000_000


def test_publish_containerd_away_keeps_everything_in_order() -> None:
    sender = FakeSender([ConnectionError("away")] * 30)

    run_with(sender, 3)

    assert ids(sender.delivered) == ["c0", "c1", "c2"]
    assert sender.attempts == 33


def test_publish_refused_event_is_tried_again_then_dropped_alone() -> None:
    sender = FakeSender([InvalidArgumentError("no")] * (events.MAX_REFUSALS + 1))

    run_with(sender, 2)

    assert ids(sender.delivered) == ["c1"]


def test_publish_full_queue_drops_others_before_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_LIMIT", 2)
    sender = FakeSender()

    async def run() -> None:
        publisher = events.EventPublisher("n", sender)
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id="c0"))
        publisher.publish("/tasks/start", events_pb2.TaskStart(container_id="c1"))
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id="c2"))
        await publisher.flush(10)
        await publisher.close()

    asyncio.run(run())

    assert [item.topic for item in sender.delivered] == ["/tasks/exit", "/tasks/exit"]


def test_publish_without_sender_is_nothing() -> None:
    async def run() -> None:
        publisher = events.EventPublisher("n", None)
        publish_all(publisher, 3)
        await publisher.flush(1)
        await publisher.close()

    asyncio.run(run())


async def _serve(path: Path, received: list[str], on_receive: Callable[[], None]) -> TtrpcServer:
    async def forward(request: events_service_pb2.ForwardRequest) -> Empty:
        received.append(events_pb2.TaskExit.FromString(request.envelope.event.value).container_id)
        on_receive()
        return Empty()

    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    server = TtrpcServer({SERVICE: {"Forward": Method(events_service_pb2.ForwardRequest, forward)}})
    await server.listen(listener)
    return server


def test_ttrpc_containerd_that_restarts_gets_every_exit_once_and_in_order() -> None:
    received: list[str] = []

    async def run(path: Path) -> None:
        arrived = asyncio.Event()
        server = await _serve(path, received, arrived.set)
        publisher = events.EventPublisher("n", events.TtrpcSender(f"unix://{path}"))
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id="before"))
        async with asyncio.timeout(10):
            await publisher.flush(10)
        await server.close(grace_s=0)
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id="down1"))
        publisher.publish("/tasks/exit", events_pb2.TaskExit(container_id="down2"))
        await publisher.flush(0.05)
        server = await _serve(path, received, arrived.set)
        await publisher.flush(10)
        await publisher.close()
        await server.close(grace_s=0)
        await asyncio.sleep(0)

    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(Path(directory) / "s"))

    assert received == ["before", "down1", "down2"]
