"""The event loop."""

import os
import signal
from collections.abc import Iterator

import pytest

from vmm.loop import EventLoop

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.call_later(DEADLINE_S, loop.stop)
    yield loop
    loop.close()


def test_timers_run_in_order_and_cancelled_ones_do_not(loop: EventLoop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: seen.append("second"))
    loop.call_later(0.0, lambda: seen.append("first"))
    loop.call_later(0.0, lambda: seen.append("never")).cancel()

    loop.run()

    assert seen == ["first", "second"]


def test_signal_calls_back_from_the_loop(loop: EventLoop) -> None:
    seen: list[str] = []

    def on_signal() -> None:
        seen.append("signal")
        loop.stop()

    loop.on_signals([signal.SIGUSR1, signal.SIGUSR2], on_signal)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    loop.run()

    assert seen == ["signal"]  # both had arrived: one call serves both


def test_reader_removed_by_another_callback_of_the_same_round_is_not_called(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    seen: list[int] = []

    def on_readable(own: int, other: int) -> None:
        seen.append(own)
        loop.remove_reader(other)
        loop.stop()

    first, second = pipes[0][0], pipes[1][0]
    loop.add_reader(first, lambda: on_readable(first, second))
    loop.add_reader(second, lambda: on_readable(second, first))
    for _, write_end in pipes:
        os.write(write_end, b"x")
    loop.run()

    assert len(seen) == 1
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def test_writer_is_called_when_there_is_room(loop: EventLoop) -> None:
    read_end, write_end = os.pipe()
    loop.add_writer(write_end, loop.stop)

    loop.run()
    loop.remove_writer(write_end)

    os.close(read_end)
    os.close(write_end)
