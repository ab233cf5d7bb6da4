"""What `blockdev-add` takes and `query-block` tells."""

from pathlib import Path
from typing import Any

import pytest

from vmm.config import DriveCache, DriveConfig, LimitConfig
from vmm.errors import QmpCommandError
from vmm.qmp.block import DiskRequest, block_info, disk_name, disk_request

pytestmark = pytest.mark.unit

FILE = {"driver": "file", "node-name": "n", "filename": "/disk"}


def test_file_alone_and_below_raw_are_the_same_disk() -> None:
    below = {"driver": "raw", "node-name": "n", "file": {"driver": "file", "filename": "/disk"}}

    expected = DiskRequest(name="n", path=Path("/disk"), readonly=False, cache=DriveCache.WRITEBACK)
    assert disk_request(dict(FILE)) == disk_request(below) == expected


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({}, DriveCache.WRITEBACK),
        ({"direct": True}, DriveCache.DIRECT),
        ({"no-flush": True, "direct": False}, DriveCache.NONE),
    ],
)
def test_cache_is_what_qemu_calls_it(cache: dict[str, bool], expected: DriveCache) -> None:
    assert disk_request({**FILE, "cache": cache, "read-only": True}).cache is expected
    assert disk_request({**FILE, "read-only": True}).readonly is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"driver": "qcow2"}, "Unknown driver 'qcow2'"),
        ({"filename": "disk"}, "absolute"),
        ({"filename": 7}, "'filename', expected: string"),
        ({"discard": "unmap"}, "'discard' is unexpected"),
        ({"cache": {"direct": True, "no-flush": True}}, "exclude each other"),
        ({"driver": "raw"}, "'filename' is unexpected"),
    ],
)
def test_what_we_have_not_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QmpCommandError, match=words):
        disk_request({**FILE, **changes})


def test_format_is_never_anything_but_raw() -> None:
    with pytest.raises(QmpCommandError, match="Unknown driver 'vmdk'"):
        disk_request({"driver": "raw", "node-name": "n", "file": {"driver": "vmdk", "filename": "/d"}})


def test_disk_is_told_in_qemus_shape() -> None:
    limit = LimitConfig(bandwidth=1000, operations=10)
    drive = DriveConfig(id="d0", path=Path("/disk"), readonly=True, cache=DriveCache.DIRECT, limit=limit)
    info = block_info("d0", drive, 4096)

    inserted = info["inserted"]
    assert (info["device"], inserted["file"], inserted["drv"], inserted["ro"]) == ("d0", "/disk", "raw", True)
    assert (inserted["bps"], inserted["iops"]) == (1000, 10)
    assert inserted["cache"] == {"writeback": True, "direct": True, "no-flush": False}
    assert inserted["image"]["virtual-size"] == 4096


def test_disk_is_named_by_device_or_by_node() -> None:
    assert disk_name("d0", None) == disk_name(None, "d0") == "d0"
    for device, node in ((None, None), ("d0", "d0")):
        with pytest.raises(QmpCommandError, match="Exactly one"):
            disk_name(device, node)
