"""ttrpc client and server against each other and against peers that break the protocol, on socketpairs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.empty_pb2 import Empty

from shim.errors import (
    Code,
    DeadlineError,
    GuestProtocolError,
    NotFoundError,
    RemoteError,
    SandboxError,
)
from shim.protos.generated import task_pb2, ttrpc_pb2
from shim.ttrpc import framing
from shim.ttrpc.client import TtrpcClient
from shim.ttrpc.server import TtrpcServer
from shim.ttrpc.service import Method, Services

pytestmark = pytest.mark.unit

SERVICE = "containerd.task.v3.Task"


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


async def state(request: task_pb2.StateRequest) -> task_pb2.StateResponse:
    if request.id == "missing":
        raise NotFoundError("Container missing does not exist")
    if request.id == "broken":
        raise KeyError("a bug")
    if request.id == "huge":
        return task_pb2.StateResponse(id="x" * (framing.MAX_PAYLOAD + 1))
    return task_pb2.StateResponse(id=request.id, pid=7)


async def wait(request: task_pb2.WaitRequest) -> task_pb2.WaitResponse:
    await asyncio.Event().wait()
    raise AssertionError


SERVICES: Services = {
    SERVICE: {"State": Method(task_pb2.StateRequest, state), "Wait": Method(task_pb2.WaitRequest, wait)}
}


def with_server(test: Callable[[TtrpcClient], Awaitable[None]]) -> None:
    async def run() -> None:
        one, other = pair()
        server = TtrpcServer(SERVICES)
        await server.serve(one)
        client = await TtrpcClient.connect(other, peer="Server")
        await test(client)
        client.close()
        await server.close(grace_s=0)
        await asyncio.sleep(0)

    asyncio.run(run())


def with_raw_server(test: Callable[[socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        one, other = pair()
        server = TtrpcServer(SERVICES)
        await server.serve(one)
        try:
            await test(other)
        finally:
            other.close()
            await server.close(grace_s=0)
            await asyncio.sleep(0)

    asyncio.run(run())


async def receive(stream: socket.socket) -> tuple[int, ttrpc_pb2.Response]:
    decoder = framing.FrameDecoder()
    async with asyncio.timeout(5):
        while True:
            for frame in decoder.feed(await asyncio.get_running_loop().sock_recv(stream, 65536)):
                response = ttrpc_pb2.Response()
                response.ParseFromString(frame.payload)
                return frame.stream_id, response


def request(method: str, message: task_pb2.StateRequest | task_pb2.WaitRequest, timeout_ns: int = 0) -> bytes:
    return ttrpc_pb2.Request(
        service=SERVICE, method=method, payload=message.SerializeToString(), timeout_nano=timeout_ns
    ).SerializeToString()


def call_state(client: TtrpcClient, container_id: str) -> Awaitable[task_pb2.StateResponse]:
    return client.call(
        (SERVICE, "State"), task_pb2.StateRequest(id=container_id), task_pb2.StateResponse, timeout_s=5
    )


def test_call_answer_arrives() -> None:
    async def test(client: TtrpcClient) -> None:
        assert (await call_state(client, "c1")).pid == 7

    with_server(test)


def test_call_fifty_at_once_are_answered_to_their_callers() -> None:
    async def test(client: TtrpcClient) -> None:
        answers = await asyncio.gather(*(call_state(client, f"c{number}") for number in range(50)))
        assert [answer.id for answer in answers] == [f"c{number}" for number in range(50)]

    with_server(test)


def test_call_shim_error_becomes_its_code_and_text() -> None:
    async def test(client: TtrpcClient) -> None:
        with pytest.raises(RemoteError, match="Container missing does not exist") as caught:
            await call_state(client, "missing")
        assert caught.value.code is Code.NOT_FOUND

    with_server(test)


def test_call_other_exception_becomes_unknown_and_the_server_lives() -> None:
    async def test(client: TtrpcClient) -> None:
        with pytest.raises(RemoteError) as caught:
            await call_state(client, "broken")
        assert caught.value.code is Code.UNKNOWN
        assert (await call_state(client, "c1")).pid == 7

    with_server(test)


@pytest.mark.parametrize("method", [(SERVICE, "Nothing"), ("no.Service", "State")])
def test_call_unknown_method_is_unimplemented(method: tuple[str, str]) -> None:
    async def test(client: TtrpcClient) -> None:
        with pytest.raises(RemoteError) as caught:
            await client.call(method, Empty(), Empty, timeout_s=5)
        assert caught.value.code is Code.UNIMPLEMENTED

    with_server(test)


def test_call_answer_above_limit_is_resource_exhausted() -> None:
    async def test(client: TtrpcClient) -> None:
        with pytest.raises(RemoteError) as caught:
            await call_state(client, "huge")
        assert caught.value.code is Code.RESOURCE_EXHAUSTED

    with_server(test)


def test_call_without_answer_ends_with_deadline_and_connection_stays() -> None:
    async def test(client: TtrpcClient) -> None:
        with pytest.raises(DeadlineError, match="did not answer Wait"):
            await client.call(
                (SERVICE, "Wait"), task_pb2.WaitRequest(), task_pb2.WaitResponse, timeout_s=0.05
            )
        assert (await call_state(client, "c1")).pid == 7

    with_server(test)


def test_server_timeout_of_request_is_honoured() -> None:
    async def test(stream: socket.socket) -> None:
        message = request("Wait", task_pb2.WaitRequest(), timeout_ns=10_000_000)
        await asyncio.get_running_loop().sock_sendall(
            stream, framing.encode(1, framing.TYPE_REQUEST, message)
        )
        assert (await receive(stream))[1].status.code == Code.DEADLINE_EXCEEDED

    with_raw_server(test)


@pytest.mark.parametrize("stream_id", [0, 2, 1])
def test_server_even_or_repeated_stream_id_is_invalid(stream_id: int) -> None:
    async def test(stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        good = request("State", task_pb2.StateRequest(id="c1"))
        await loop.sock_sendall(stream, framing.encode(1, framing.TYPE_REQUEST, good))
        assert (await receive(stream))[1].status.code == Code.OK
        await loop.sock_sendall(stream, framing.encode(stream_id, framing.TYPE_REQUEST, good))
        answered, response = await receive(stream)
        assert (answered, response.status.code) == (stream_id, Code.INVALID_ARGUMENT)

    with_raw_server(test)


def test_server_oversize_request_is_refused_on_its_stream_and_the_next_one_served() -> None:
    async def test(stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        length = framing.MAX_PAYLOAD + 5
        await loop.sock_sendall(
            stream, framing.HEADER.pack(length, 1, framing.TYPE_REQUEST, 0) + bytes(length)
        )
        answered, response = await receive(stream)
        assert (answered, response.status.code) == (1, Code.RESOURCE_EXHAUSTED)
        good = request("State", task_pb2.StateRequest(id="c1"))
        await loop.sock_sendall(stream, framing.encode(3, framing.TYPE_REQUEST, good))
        assert (await receive(stream))[1].status.code == Code.OK

    with_raw_server(test)


def test_server_request_that_is_no_protobuf_is_invalid() -> None:
    async def test(stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(stream, framing.encode(1, framing.TYPE_REQUEST, b"\xff\xff\xff"))
        assert (await receive(stream))[1].status.code == Code.INVALID_ARGUMENT

    with_raw_server(test)


BAD_ANSWERS = {
    "oversize": framing.HEADER.pack(framing.MAX_PAYLOAD + 1, 1, framing.TYPE_RESPONSE, 0),
    "unknown stream": framing.encode(99, framing.TYPE_RESPONSE, b""),
    "request from the server": framing.encode(1, framing.TYPE_REQUEST, b""),
    "no protobuf": framing.encode(1, framing.TYPE_RESPONSE, b"\xff\xff\xff"),
    "payload of another type": framing.encode(
        1, framing.TYPE_RESPONSE, ttrpc_pb2.Response(payload=b"\xff\xff\xff").SerializeToString()
    ),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_client_peer_that_breaks_the_protocol_ends_the_connection(answer: bytes) -> None:
    async def run() -> None:
        one, other = pair()
        client = await TtrpcClient.connect(other, peer="Guest agent")
        call = asyncio.ensure_future(call_state(client, "c1"))
        await asyncio.sleep(0)
        await asyncio.get_running_loop().sock_sendall(one, answer)
        with pytest.raises(GuestProtocolError, match="Guest agent"):
            await call
        await client.closed
        assert isinstance(client.error, GuestProtocolError)
        one.close()

    asyncio.run(run())


def test_client_peer_that_closes_fails_every_call() -> None:
    async def run() -> None:
        one, other = pair()
        client = await TtrpcClient.connect(other, peer="Guest agent")
        calls = [asyncio.ensure_future(call_state(client, "c1")) for _ in range(3)]
        await asyncio.sleep(0)
        one.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, SandboxError) for result in results)

    asyncio.run(run())


@pytest.mark.parametrize("leaves", [True, False])
def test_create_is_taken_back_if_and_only_if_its_client_left_before_the_answer(leaves: bool) -> None:
    async def run() -> None:
        begun, may_end, taken_back = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def create(_: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
            begun.set()
            await may_end.wait()
            return task_pb2.CreateTaskResponse(pid=7)

        async def take_back(request: task_pb2.CreateTaskRequest) -> None:
            assert request.id == "c1"
            taken_back.set()

        one, other = pair()
        server = TtrpcServer({SERVICE: {"Create": Method(task_pb2.CreateTaskRequest, create, take_back)}})
        await server.serve(one)
        client = await TtrpcClient.connect(other, peer="Server")
        call = asyncio.create_task(
            client.call(
                (SERVICE, "Create"),
                task_pb2.CreateTaskRequest(id="c1"),
                task_pb2.CreateTaskResponse,
                timeout_s=5,
            )
        )
        await begun.wait()
        if leaves:
            client.close()
            for _ in range(10):  # turns of the loop, until it has seen the end of the stream
                await asyncio.sleep(0)
        may_end.set()
        if leaves:
            async with asyncio.timeout(5):
                await taken_back.wait()
        await asyncio.wait([call])
        assert (call.exception() is None) is not leaves
        client.close()
        await server.close(grace_s=5)
        assert taken_back.is_set() is leaves

    asyncio.run(run())
