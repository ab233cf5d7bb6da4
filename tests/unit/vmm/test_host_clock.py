"""The cached frequency of the host's time-stamp counter."""

import json
import os
from pathlib import Path

import pytest

from vmm.engines import host_clock
from vmm.log import Level, Log

pytestmark = pytest.mark.unit

LOG = Log(Level.ERROR)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_value_of_this_boot_is_taken_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "clock.json"
    cache.write_text(json.dumps({"boot_id": BOOT_ID, "tsc_khz": 1234}))

    assert host_clock.tsc_khz(LOG, cache) == 1234


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"boot_id": "other", "tsc_khz": 1234}',
        f'{{"boot_id": "{BOOT_ID}", "tsc_khz": "1234"}}',
    ],
)
def test_cache_of_another_boot_or_broken_is_not_trusted(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.sys.tsc_khz", lambda: 777)
    cache = tmp_path / "clock.json"
    cache.write_text(content)

    assert host_clock.tsc_khz(LOG, cache) == 777
    assert json.loads(cache.read_text()) == {"boot_id": BOOT_ID, "tsc_khz": 777}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give the file away")
def test_cache_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.sys.tsc_khz", lambda: 777)
    cache = tmp_path / "clock.json"
    cache.write_text(json.dumps({"boot_id": BOOT_ID, "tsc_khz": 1234}))
    os.chown(cache, 12345, 12345)

    assert host_clock.tsc_khz(LOG, cache) == 777


def test_cache_that_cannot_be_written_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.sys.tsc_khz", lambda: 777)

    assert host_clock.tsc_khz(LOG, Path("/proc/nonexistent/clock.json")) == 777
