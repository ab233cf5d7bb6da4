"""The guest agent as the shim sees it: one method per RPC of agent.proto, and the two handshakes.

The guest is hostile. Everything it sends is bounded in size and time and parsed by protobuf's C core;
what is malformed raises GuestProtocolError, which ends the sandbox (sandbox.py), never the shim.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from vmm import untrusted

from ..errors import GuestProtocolError, SandboxError
from ..ttrpc.client import TtrpcClient
from .generated import agent_pb2

PROTOCOL_VERSION = 1
HELLO_PORT = 1024
AGENT_PORT = 1024
STREAM_PORT = 1025
FRAME_LIMIT = 4096
"""Of a Hello, HelloAck or stream id (agent.proto)."""

CONNECT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 30.0
_SERVICE = "strato.agent.v1.Agent"
_OK_LIMIT = 64

MessageT = TypeVar("MessageT", bound=Message)


async def read_exactly(stream: socket.socket, size: int) -> bytes:
    """*size* bytes from the non-blocking *stream*. Raises GuestProtocolError when it ends before."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(stream, size - len(data))
        if not part:
            raise GuestProtocolError(f"Guest closed a connection after {len(data)} of {size} bytes")
        data += part
    return data


def frame(payload: bytes) -> bytes:
    """*payload* with its length before it."""
    return len(payload).to_bytes(4, "big") + payload


async def read_frame(stream: socket.socket) -> bytes:
    """One length-prefixed message of at most FRAME_LIMIT bytes. Raises GuestProtocolError."""
    length = int.from_bytes(await read_exactly(stream, 4), "big")
    if length > FRAME_LIMIT:
        raise GuestProtocolError(f"Guest announced a message of {length} bytes; the limit is {FRAME_LIMIT}")
    return await read_exactly(stream, length)


async def answer_hello(stream: socket.socket, *, timeout_s: float = CONNECT_TIMEOUT_S) -> agent_pb2.Hello:
    """Read the agent's Hello, check it and acknowledge it. Raises GuestProtocolError."""
    try:
        async with asyncio.timeout(timeout_s):
            raw = await read_frame(stream)
            hello = agent_pb2.Hello()
            try:
                hello.ParseFromString(raw)
            except DecodeError as error:
                raise GuestProtocolError("Guest's hello cannot be parsed") from error
            ack = agent_pb2.HelloAck(protocol_version=PROTOCOL_VERSION)
            if hello.protocol_version != PROTOCOL_VERSION:
                ack.refusal = f"Protocol {hello.protocol_version} is not served"
            await asyncio.get_running_loop().sock_sendall(stream, frame(ack.SerializeToString()))
    except TimeoutError as error:
        raise GuestProtocolError(f"Guest did not finish its hello within {timeout_s:g} s") from error
    except OSError as error:
        raise GuestProtocolError(f"Guest's hello was cut: {error.strerror}") from error
    if ack.refusal:
        raise GuestProtocolError(
            f"Guest agent {hello.agent_version[:80]!r} speaks protocol {hello.protocol_version}, "
            f"this shim speaks {PROTOCOL_VERSION}; build the guest image of this version"
        )
    return hello


async def connect_port(vsock_path: str, port: int, *, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Connect to guest *port* through the VM's vsock socket (Firecracker's protocol).

    Returns a non-blocking socket that carries raw bytes. Raises SandboxError, GuestProtocolError.
    """
    loop = asyncio.get_running_loop()
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setblocking(False)
    try:
        async with asyncio.timeout(timeout_s):
            socket_fd, address = untrusted.socket_address(vsock_path)
            try:
                await loop.sock_connect(stream, address)
            finally:
                os.close(socket_fd)
            await loop.sock_sendall(stream, f"CONNECT {port}\n".encode())
            line = b""
            while not line.endswith(b"\n"):
                if len(line) >= _OK_LIMIT:
                    raise GuestProtocolError(f"Vsock answered CONNECT {port} with {line!r}")
                # Byte by byte: what follows the line belongs to the connection.
                line += await read_exactly(stream, 1)
        if not line.startswith(b"OK "):
            raise GuestProtocolError(f"Vsock answered CONNECT {port} with {line!r}")
    except TimeoutError as error:
        stream.close()
        raise SandboxError(f"Guest port {port} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        stream.close()
        raise SandboxError(f"Cannot connect to guest port {port}: {error.strerror}") from error
    except BaseException:
        stream.close()
        raise
    return stream


async def connect_stream(vsock_path: str, name: str) -> socket.socket:
    """Connect the stdio stream *name* ("<container_id>/<exec_id>/<stdin|stdout|stderr>")."""
    stream = await connect_port(vsock_path, STREAM_PORT)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_sendall(stream, frame(name.encode()))
            echoed = await read_frame(stream)
        if echoed != name.encode():
            raise GuestProtocolError(f"Guest acknowledged stream {echoed[:80]!r}, not {name}")
    except TimeoutError as error:
        stream.close()
        raise SandboxError(f"Guest did not acknowledge stream {name} in {CONNECT_TIMEOUT_S:g} s") from error
    except OSError as error:
        stream.close()
        raise SandboxError(f"Guest closed stream {name}: {error.strerror}") from error
    except BaseException:
        stream.close()
        raise
    return stream


class AgentClient:
    """The agent's RPCs. Made by `connect`; ends with the connection (`closed`)."""

    def __init__(self, rpc: TtrpcClient) -> None:
        self._rpc = rpc

    @classmethod
    async def connect(cls, vsock_path: str) -> AgentClient:
        """Connect to the agent of the VM behind *vsock_path*. Raises SandboxError."""
        return cls(await TtrpcClient.connect(await connect_port(vsock_path, AGENT_PORT), peer="Guest agent"))

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the connection has ended."""
        return self._rpc.closed

    @property
    def error(self) -> Exception | None:
        """Why it ended."""
        return self._rpc.error

    def close(self) -> None:
        """End the connection."""
        self._rpc.close()

    async def _call(
        self, name: str, request: Message, response_type: type[MessageT], timeout_s: float = CALL_TIMEOUT_S
    ) -> MessageT:
        return await self._rpc.call((_SERVICE, name), request, response_type, timeout_s=timeout_s)

    async def create_sandbox(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Mount the shares, set name, clock, DNS and entropy."""
        await self._call("CreateSandbox", request, agent_pb2.CreateSandboxResponse)

    async def destroy_sandbox(self, *, timeout_s: float) -> None:
        """Let the guest end in order."""
        await self._call(
            "DestroySandbox", agent_pb2.DestroySandboxRequest(), agent_pb2.DestroySandboxResponse, timeout_s
        )

    async def create_container(self, request: agent_pb2.CreateContainerRequest, *, timeout_s: float) -> int:
        """Prepare a container up to its exec; return the guest pid of its init."""
        answer = await self._call("CreateContainer", request, agent_pb2.CreateContainerResponse, timeout_s)
        return answer.pid

    async def start_container(self, container_id: str, exec_id: str) -> int:
        """Run a prepared process; return its guest pid."""
        request = agent_pb2.StartContainerRequest(container_id=container_id, exec_id=exec_id)
        return (await self._call("StartContainer", request, agent_pb2.StartContainerResponse)).pid

    async def exec_process(self, request: agent_pb2.ExecProcessRequest) -> None:
        """Register a further process."""
        await self._call("ExecProcess", request, agent_pb2.ExecProcessResponse)

    async def signal_process(
        self, container_id: str, exec_id: str, number: int, *, everything: bool = False
    ) -> None:
        """Send a signal to one process, or to every process of the container."""
        request = agent_pb2.SignalProcessRequest(
            container_id=container_id, exec_id=exec_id, signal=number, all=everything
        )
        await self._call("SignalProcess", request, agent_pb2.SignalProcessResponse)

    async def tty_win_resize(self, container_id: str, exec_id: str, rows: int, columns: int) -> None:
        """Set the size of a process's terminal."""
        request = agent_pb2.TtyWinResizeRequest(
            container_id=container_id, exec_id=exec_id, rows=rows, columns=columns
        )
        await self._call("TtyWinResize", request, agent_pb2.TtyWinResizeResponse)

    async def close_stdin(self, container_id: str, exec_id: str, after_bytes: int) -> None:
        """End a process's input after exactly *after_bytes* bytes."""
        request = agent_pb2.CloseStdinRequest(
            container_id=container_id, exec_id=exec_id, after_bytes=after_bytes
        )
        await self._call("CloseStdin", request, agent_pb2.CloseStdinResponse)

    async def list_processes(self, container_id: str, *, timeout_s: float) -> Iterable[agent_pb2.Process]:
        """The container's processes."""
        request = agent_pb2.ListProcessesRequest(container_id=container_id)
        answer = await self._call("ListProcesses", request, agent_pb2.ListProcessesResponse, timeout_s)
        return answer.processes

    async def stats_container(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """The container's resource use."""
        request = agent_pb2.StatsContainerRequest(container_id=container_id)
        return await self._call("StatsContainer", request, agent_pb2.StatsContainerResponse, 5.0)

    async def pause_container(self, container_id: str) -> None:
        """Freeze the container's cgroup."""
        request = agent_pb2.PauseContainerRequest(container_id=container_id)
        await self._call("PauseContainer", request, agent_pb2.PauseContainerResponse)

    async def resume_container(self, container_id: str) -> None:
        """Thaw the container's cgroup."""
        request = agent_pb2.ResumeContainerRequest(container_id=container_id)
        await self._call("ResumeContainer", request, agent_pb2.ResumeContainerResponse)

    async def update_container(self, container_id: str, linux_resources: bytes) -> None:
        """Change the container's limits."""
        request = agent_pb2.UpdateContainerRequest(container_id=container_id, linux_resources=linux_resources)
        await self._call("UpdateContainer", request, agent_pb2.UpdateContainerResponse)

    async def remove_container(
        self, container_id: str, exec_id: str = "", *, timeout_s: float = 10.0
    ) -> None:
        """Remove what is left of a container or of a finished exec."""
        request = agent_pb2.RemoveContainerRequest(container_id=container_id, exec_id=exec_id)
        await self._call("RemoveContainer", request, agent_pb2.RemoveContainerResponse, timeout_s)

    async def get_events(self, after_seq: int, wait_ms: int) -> Iterable[agent_pb2.Event]:
        """Events after *after_seq*, waiting for one at most *wait_ms*."""
        request = agent_pb2.GetEventsRequest(after_seq=after_seq, wait_ms=wait_ms)
        timeout_s = wait_ms / 1000 + CALL_TIMEOUT_S
        return (await self._call("GetEvents", request, agent_pb2.GetEventsResponse, timeout_s)).events

    async def list_interfaces(self) -> Iterable[agent_pb2.Interface]:
        """The interfaces of the sandbox's network namespace but `lo`."""
        request = agent_pb2.ListInterfacesRequest()
        return (await self._call("ListInterfaces", request, agent_pb2.ListInterfacesResponse)).interfaces

    async def update_interface(self, interface: agent_pb2.Interface) -> None:
        """Configure one NIC in the sandbox's network namespace."""
        request = agent_pb2.UpdateInterfaceRequest(interface=interface)
        await self._call("UpdateInterface", request, agent_pb2.UpdateInterfaceResponse)

    async def update_routes(self, request: agent_pb2.UpdateRoutesRequest) -> None:
        """Replace routes and static neighbours of the sandbox's network namespace."""
        await self._call("UpdateRoutes", request, agent_pb2.UpdateRoutesResponse)

    async def set_guest_date_time(self, wall_clock_ns: int) -> None:
        """Set the guest's clock."""
        request = agent_pb2.SetGuestDateTimeRequest(wall_clock_ns=wall_clock_ns)
        await self._call("SetGuestDateTime", request, agent_pb2.SetGuestDateTimeResponse, 5.0)

    async def bind_device(self, device: str) -> agent_pb2.BoundDevice:
        """Let the guest take what the VMM has put into a slot (`device_add`), and say what it is there.

        *device* is the slot's `guest-device` of `x-strato-query-slots`. The answer is no more than the
        guest's word. Raises RemoteError: NOT_FOUND without such a slot, ALREADY_EXISTS when it is bound,
        FAILED_PRECONDITION when it is empty, DEADLINE_EXCEEDED when the device does not come up in the time
        that the agent gives it (20 s at most).
        """
        request = agent_pb2.BindDeviceRequest(device=device)
        return (await self._call("BindDevice", request, agent_pb2.BindDeviceResponse)).device

    async def unbind_device(self, device: str) -> None:
        """Let the guest let go of a device, before the VMM takes it away (`device_del`).

        Raises RemoteError: NOT_FOUND without such a slot, FAILED_PRECONDITION when it is not bound or is a
        disk that is mounted.
        """
        request = agent_pb2.UnbindDeviceRequest(device=device)
        await self._call("UnbindDevice", request, agent_pb2.UnbindDeviceResponse)
