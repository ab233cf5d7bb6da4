"""Descriptors that come with QMP commands."""

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.descriptors import open_descriptors
from vmm.errors import QmpCommandError
from vmm.qmp.session import MAX_NAMED, Session

pytestmark = pytest.mark.unit


class Client:
    """A client's end, the server's end and its session."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.session = Session()

    def send(self, text: bytes, *fds: int) -> bytes:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.ours.sendmsg([text], rights)
        return self.session.receive(self.theirs, 100)

    def close(self) -> None:
        self.session.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def client() -> Iterator[Client]:
    before = open_descriptors()
    made = Client()
    yield made
    made.close()
    assert open_descriptors() <= before


def name_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    fds = [os.open(tmp_path / str(index), os.O_RDWR | os.O_CREAT) for index in range(12)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_the_last_descriptor_gets_the_name_and_is_private(client: Client, files: list[int]) -> None:
    assert client.send(b"one", files[0]) == b"one"
    client.session.name_received("tap")
    fd = client.session.take_named("tap")

    assert name_of(fd) == name_of(files[0])
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(QmpCommandError, match="'tap' has not been found"):
        client.session.take_named("tap")


def test_a_name_goes_from_one_descriptor_to_the_next(client: Client, files: list[int]) -> None:
    for index in (0, 1):
        client.send(b" ", files[index])
        client.session.name_received("tap")

    fd = client.session.take_named("tap")
    assert name_of(fd) == name_of(files[1])
    os.close(fd)


def test_without_a_descriptor_or_with_a_number_for_a_name_it_is_refused(
    client: Client, files: list[int]
) -> None:
    client.send(b"no descriptor")
    with pytest.raises(QmpCommandError, match="SCM_RIGHTS"):
        client.session.name_received("tap")
    client.send(b" ", files[0])
    with pytest.raises(QmpCommandError, match="digit"):
        client.session.name_received("7")


def test_many_descriptors_at_once_leak_none(client: Client, files: list[int]) -> None:
    client.send(b" ", *files)
    client.send(b" ", *files[:3])
    client.session.name_received("last")

    fd = client.session.take_named("last")
    assert name_of(fd) == name_of(files[2])
    os.close(fd)


def test_names_are_bounded(client: Client, files: list[int]) -> None:
    for index in range(MAX_NAMED):
        client.send(b" ", files[0])
        client.session.name_received(f"n{index}")
    client.send(b" ", files[0])
    with pytest.raises(QmpCommandError, match=f"More than {MAX_NAMED}"):
        client.session.name_received("one-more")
