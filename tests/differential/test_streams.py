"""The same streams through our vsock, through vhost-device-vsock and over a unix socket: the same bytes.

vhost-device-vsock knows no half-close, so what ends by one is compared with the unix socket alone.
"""

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.command import run
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import REFERENCE, STRATO, Vsock

from .stream_host import ALL_ENDINGS, COUNTED_ENDINGS, play

pytestmark = pytest.mark.differential

PORT = 4000
TIMEOUT_S = 110.0
MODES = {"counted": COUNTED_ENDINGS, "all": ALL_ENDINGS}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path."""
    made = Path(tempfile.mkdtemp(prefix="vms-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


Told = tuple[str, list[str]]
"""What the guest's end and the host's end tell."""


def both_ends(path: Path, load: tuple[int, int, str], guest: Callable[[], str]) -> Told:
    """Runs the guest's end beside the host's."""
    seed, count, mode = load
    told: list[list[str] | BaseException] = []

    def host() -> None:
        try:
            told.append(play(listener, seed, count, MODES[mode]))
        except (TimeoutError, OSError) as error:
            told.append(error)

    thread = threading.Thread(target=host)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        thread.start()
        try:
            output = guest()
        finally:
            thread.join(TIMEOUT_S)
            path.unlink()
    assert told, "The host's end hangs"
    if isinstance(told[0], BaseException):
        raise AssertionError(f"{told[0]!r}\n{output}") from told[0]
    return output, told[0]


def natively(program: Path, directory: Path, load: tuple[int, int, str]) -> Told:
    """Both ends over a unix socket."""
    path = directory / "native.sock"
    words = [str(program), f"unix:{path}", *(str(word) for word in load)]
    return both_ends(path, load, lambda: run(words, timeout_s=TIMEOUT_S).check().stdout.decode())


def through(server: str, directory: Path, program: Path, *loads: tuple[int, int, str]) -> list[Told]:
    """Both ends through a guest's vsock, one load after the other in one VM."""
    place = directory / server
    place.mkdir()
    image = guest_image.build(place, {"streams": program})
    with DeviceVm(place, DeviceVmSettings(image, [Vsock("vsock", place / "v", server)])) as vm:

        def once(load: tuple[int, int, str]) -> Told:
            words = ("/streams", f"vsock:2:{PORT}", *load)
            return both_ends(place / f"v_{PORT}", load, lambda: vm.run(*words, timeout_s=TIMEOUT_S))

        return [once(load) for load in loads]


def test_counted_streams_are_as_through_the_reference(directory: Path, programs: dict[str, Path]) -> None:
    program = programs["streams"]
    loads = ((1, 8, "counted"), (2, 64, "counted"), (3, 64, "counted"))

    native = [natively(program, directory, load) for load in loads]

    assert through(STRATO, directory, program, *loads) == native
    assert through(REFERENCE, directory, program, *loads) == native


@pytest.mark.full
def test_a_thousand_counted_streams_are_as_through_the_reference(
    directory: Path, programs: dict[str, Path]
) -> None:
    program = programs["streams"]

    native = natively(program, directory, (9, 1000, "counted"))

    assert through(STRATO, directory, program, (9, 1000, "counted")) == [native]
    assert through(REFERENCE, directory, program, (9, 1000, "counted")) == [native]


def test_streams_with_half_closes_are_as_over_a_unix_socket(
    directory: Path, programs: dict[str, Path]
) -> None:
    program = programs["streams"]
    loads = ((4, 64, "all"), (5, 64, "all"))

    native = [natively(program, directory, load) for load in loads]

    assert through(STRATO, directory, program, *loads) == native


def test_a_thousand_streams_lose_nothing(directory: Path, programs: dict[str, Path]) -> None:
    program = programs["streams"]

    native = natively(program, directory, (6, 1000, "all"))

    assert through(STRATO, directory, program, (6, 1000, "all")) == [native]
