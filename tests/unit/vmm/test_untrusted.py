"""Reading what a hostile strato-vmm may have left: links, fifos, floods."""

import os
import socket
from pathlib import Path

import pytest

from vmm import untrusted

pytestmark = pytest.mark.unit


def test_read_file_gives_the_end_of_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")

    assert untrusted.read_file(tmp_path / "f", 100) == b"0123456789"
    assert untrusted.read_file(tmp_path / "f", 4) == b"6789"


def test_read_file_of_a_file_without_an_end_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as stream:
        stream.truncate(1 << 40)

    assert untrusted.read_file(tmp_path / "f", 1000) == bytes(1000)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "socket"])
def test_read_file_refuses_what_is_no_file_and_never_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    with socket.socket(socket.AF_UNIX) as listener:
        makers = {
            "link": lambda: path.symlink_to("/etc/passwd"),
            "fifo": lambda: os.mkfifo(path),
            "folder": lambda: path.mkdir(),
            "socket": lambda: listener.bind(str(path)),
        }
        makers[kind]()

        with pytest.raises(OSError):
            untrusted.read_file(path, 100)


def test_socket_address_leads_to_the_socket_itself(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        fd, address = untrusted.socket_address(path)
        path.unlink()
        path.symlink_to("/nonexistent")
        try:
            client.connect(address)
        finally:
            os.close(fd)


def test_socket_address_refuses_a_link_to_somebody_elses_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "victim"))
        (tmp_path / "s").symlink_to(tmp_path / "victim")

        with pytest.raises(OSError, match="no socket"):
            untrusted.socket_address(tmp_path / "s")
