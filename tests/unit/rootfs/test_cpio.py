"""The cpio writer and the guest image."""

import stat
import subprocess
from pathlib import Path

import pytest

from rootfs import image
from rootfs.cpio import Node, character_device, directory, regular, write_cpio
from rootfs.errors import ImageError

pytestmark = pytest.mark.unit

_AGENT = b"\x7fELF" + b"agent" * 1000


def _entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A second reader of the format: name to mode and data."""
    entries: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name_end = offset + 110 + fields[11]
        name = archive[offset + 110 : name_end - 1].decode()
        data_start = (name_end + 3) & ~3
        data_end = data_start + fields[6]
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], archive[data_start:data_end])
        offset = (data_end + 3) & ~3


def test_write_cpio_round_trip_keeps_modes_and_data() -> None:
    archive = write_cpio(
        [directory("dev"), regular("init", b"abcde", 0o755), character_device("dev/console", 5, 1)]
    )

    entries = _entries(archive)
    assert list(entries) == ["dev", "dev/console", "init"]
    assert entries["init"] == (stat.S_IFREG | 0o755, b"abcde")
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, b"")


def test_write_cpio_order_of_nodes_does_not_matter() -> None:
    nodes = [directory("a"), regular("a/b", b"1"), regular("a-b", b"2"), directory("c")]

    assert write_cpio(nodes) == write_cpio(list(reversed(nodes)))


def test_write_cpio_folder_comes_before_its_files_despite_sorting_of_names() -> None:
    # '-' sorts before '/': by plain text "a-b" would come between "a" and "a/b".
    names = list(_entries(write_cpio([regular("a/b", b""), regular("a-b", b""), directory("a")])))

    assert names.index("a") < names.index("a/b")


@pytest.mark.parametrize("path", ["", "/init", "a/../b", "./a", "a//b"])
def test_write_cpio_odd_path_is_refused(path: str) -> None:
    with pytest.raises(ImageError, match="no path inside an image"):
        write_cpio([regular(path, b"")])


def test_write_cpio_missing_folder_is_refused() -> None:
    with pytest.raises(ImageError, match="without its folder 'dev'"):
        write_cpio([character_device("dev/console", 5, 1)])


def test_write_cpio_path_twice_is_refused() -> None:
    with pytest.raises(ImageError, match="twice"):
        write_cpio([directory("a"), Node("a", stat.S_IFREG)])


def test_write_cpio_is_read_by_another_program() -> None:
    archive = write_cpio([directory("dev"), regular("init", b"x" * 4097, 0o755)])

    listing = subprocess.run(
        ["busybox", "cpio", "-itv"], input=archive, capture_output=True, check=True
    ).stdout.decode()

    assert "4097" in listing
    assert "init" in listing


def test_write_image_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first_agent, second_agent = tmp_path / "one" / "agent", tmp_path / "two" / "another-name"
    for agent in (first_agent, second_agent):
        agent.parent.mkdir()
        agent.write_bytes(_AGENT)
    second_agent.chmod(0o700)

    for compress in (False, True):
        image.write_image(first_agent, tmp_path / "a.img", compress=compress)
        image.write_image(second_agent, tmp_path / "b.img", compress=compress)
        assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()


def test_write_image_holds_the_agent_as_init_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "agent").write_bytes(_AGENT)

    image.write_image(tmp_path / "agent", tmp_path / "image")

    entries = _entries((tmp_path / "image").read_bytes())
    files = {name for name, (mode, _) in entries.items() if stat.S_ISREG(mode)}
    assert files == {"init"}
    assert entries["init"] == (stat.S_IFREG | 0o755, _AGENT)


def test_image_too_large_is_refused() -> None:
    with pytest.raises(ImageError, match="make the agent smaller"):
        image.image_nodes(b"\x7fELF" + bytes(image.MAX_UNPACKED_BYTES))


def test_image_agent_that_is_no_program_is_refused() -> None:
    with pytest.raises(ImageError, match="not an ELF program"):
        image.image_nodes(b"#!/bin/sh\n")
