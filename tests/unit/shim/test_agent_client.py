"""Handshakes with a guest that lies: hello, CONNECT, stream ids; and what requests for devices say."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.agent_proto import client
from shim.agent_proto.generated import agent_pb2
from shim.errors import Code, GuestProtocolError, NotFoundError, RemoteError, SandboxError
from shim.ttrpc.client import TtrpcClient
from shim.ttrpc.server import TtrpcServer
from shim.ttrpc.service import Method

pytestmark = pytest.mark.unit

HELLO = agent_pb2.Hello(protocol_version=1, agent_version="0.1", boot_uuid="b")


def hello(said: bytes, *, then_close: bool = False) -> tuple[agent_pb2.Hello, bytes]:
    """What the shim makes of *said*, and what it answers."""

    async def run() -> tuple[agent_pb2.Hello, bytes]:
        one, other = socket.socketpair()
        for end in (one, other):
            end.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_sendall(one, said)
            if then_close:
                one.shutdown(socket.SHUT_WR)
            found = await client.answer_hello(other, timeout_s=0.5)
            return found, one.recv(4096)
        finally:
            one.close()
            other.close()

    return asyncio.run(run())


def test_hello_right_version_is_acknowledged() -> None:
    found, answer = hello(client.frame(HELLO.SerializeToString()))

    assert found == HELLO
    assert agent_pb2.HelloAck.FromString(answer[4:]).protocol_version == 1


def test_hello_other_version_is_refused_in_words() -> None:
    with pytest.raises(GuestProtocolError, match="speaks protocol 7"):
        hello(client.frame(agent_pb2.Hello(protocol_version=7).SerializeToString()))


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (client.frame(b"\xff\xff\xff"), "cannot be parsed"),
        (b"\xff\xff\xff\xff", "announced a message of 4294967295 bytes"),
        (b"\0\0\x10\x01", "announced a message of 4097 bytes"),
        (b"\0\0\0\x05abc", "within 0.5 s"),
        (b"", "within 0.5 s"),
    ],
)
def test_hello_garbage_is_an_error_in_bounded_time(said: bytes, complaint: str) -> None:
    with pytest.raises(GuestProtocolError, match=complaint):
        hello(said)


def test_hello_cut_short_is_an_error() -> None:
    with pytest.raises(GuestProtocolError, match="closed a connection"):
        hello(b"\0\0", then_close=True)


def with_vsock(answer: Callable[[socket.socket], Awaitable[None]], name: str = "c1//stdout") -> None:
    """Connect stream *name* through a vsock socket whose other end is *answer*."""

    async def run(path: Path) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)

        async def serve() -> None:
            stream, _ = await loop.sock_accept(listener)
            with stream:
                await answer(stream)

        server = asyncio.create_task(serve())
        try:
            stream = await client.connect_stream(str(path), name)
            stream.close()
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
            listener.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory) / "v"))


async def send(stream: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(stream, data)


async def read(stream: socket.socket, size: int) -> bytes:
    return await client.read_exactly(stream, size)


def test_stream_acknowledged_by_its_name_is_connected() -> None:
    async def answer(stream: socket.socket) -> None:
        assert await read(stream, len(b"CONNECT 1025\n")) == b"CONNECT 1025\n"
        await send(stream, b"OK 5\n")
        framed = client.frame(b"c1//stdout")
        assert await read(stream, len(framed)) == framed
        await send(stream, framed)
        await asyncio.sleep(1)

    with_vsock(answer)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [(b"NO\n", "answered CONNECT"), (b"x" * 200, "answered CONNECT"), (b"OK", "closed a connection")],
)
def test_connect_garbage_line_is_an_error(line: bytes, complaint: str) -> None:
    async def answer(stream: socket.socket) -> None:
        await read(stream, len(b"CONNECT 1025\n"))
        await send(stream, line)
        stream.shutdown(socket.SHUT_WR)
        await asyncio.sleep(1)

    with pytest.raises(GuestProtocolError, match=complaint):
        with_vsock(answer)


@pytest.mark.parametrize("echo", [client.frame(b"c2//stdout"), b"\xff\xff\xff\xff"])
def test_stream_acknowledged_by_another_name_is_an_error(echo: bytes) -> None:
    async def answer(stream: socket.socket) -> None:
        await read(stream, len(b"CONNECT 1025\n"))
        await send(stream, b"OK 5\n")
        await send(stream, echo)
        await asyncio.sleep(1)

    with pytest.raises(GuestProtocolError):
        with_vsock(answer)


def test_connect_without_vsock_is_a_sandbox_error() -> None:
    with pytest.raises(SandboxError, match="Cannot connect"):
        asyncio.run(client.connect_port("/nowhere/vsock.sock", 1024))


async def bind_device(request: agent_pb2.BindDeviceRequest) -> agent_pb2.BindDeviceResponse:
    if request.device != "LNRO0005:0a":
        raise NotFoundError(f"Device {request.device} does not exist")
    return agent_pb2.BindDeviceResponse(device=agent_pb2.BoundDevice(virtio_id=2, name="vdb", serial="hot"))


async def unbind_device(request: agent_pb2.UnbindDeviceRequest) -> agent_pb2.UnbindDeviceResponse:
    assert request.device == "LNRO0005:0a"
    return agent_pb2.UnbindDeviceResponse()


def with_agent(test: Callable[[client.AgentClient], Awaitable[None]]) -> None:
    """Run *test* with a client of an agent that has a disk in slot 10."""
    methods = {
        "BindDevice": Method(agent_pb2.BindDeviceRequest, bind_device),
        "UnbindDevice": Method(agent_pb2.UnbindDeviceRequest, unbind_device),
    }

    async def run() -> None:
        one, other = socket.socketpair()
        for end in (one, other):
            end.setblocking(False)
        server = TtrpcServer({"strato.agent.v1.Agent": methods})
        await server.serve(one)
        agent = client.AgentClient(await TtrpcClient.connect(other, peer="Guest agent"))
        await test(agent)
        agent.close()
        await server.close(grace_s=0)
        await asyncio.sleep(0)

    asyncio.run(run())


def test_bind_device_returns_what_has_appeared() -> None:
    async def test(agent: client.AgentClient) -> None:
        bound = await agent.bind_device("LNRO0005:0a")
        assert (bound.virtio_id, bound.name, bound.serial) == (2, "vdb", "hot")
        await agent.unbind_device("LNRO0005:0a")

    with_agent(test)


def test_bind_device_of_an_unknown_slot_raises_the_agents_words() -> None:
    async def test(agent: client.AgentClient) -> None:
        with pytest.raises(RemoteError, match="LNRO0005:ff does not exist") as caught:
            await agent.bind_device("LNRO0005:ff")
        assert caught.value.code is Code.NOT_FOUND

    with_agent(test)
