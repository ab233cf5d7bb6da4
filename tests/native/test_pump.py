"""The byte pump on real fifos, pipes, sockets, terminals and files."""

import hashlib
import os
import pty
import select
import signal
import socket
import subprocess
import termios
import threading
import time
import tty
from pathlib import Path

import pytest

from vmm.sys import Pump, PumpEvent, PumpEventKind, PumpOwnerError, PumpState

from .conftest import Descriptors

pytestmark = pytest.mark.native

DEADLINE_S = 20.0
MIB = 1024 * 1024


def wait_events(pump: Pump, count: int) -> list[PumpEvent]:
    """Wait for exactly so many events."""
    events: list[PumpEvent] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(events) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"only {events} after {DEADLINE_S} s"
        select.select([pump], [], [], left)
        events += pump.events()
    assert len(events) == count, events
    return events


def wait_moved(pump: Pump, handle: int, count: int) -> None:
    """Wait until so many bytes have been moved: a poll, since the pump has no event for progress."""
    deadline = time.monotonic() + DEADLINE_S
    while pump.stats(handle).bytes_moved < count:
        assert time.monotonic() < deadline, pump.stats(handle)
        time.sleep(0.001)


def wait_read(pump: Pump, handle: int, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while pump.stats(handle).bytes_read < count:
        assert time.monotonic() < deadline, pump.stats(handle)
        time.sleep(0.001)


def read_exactly(fd: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        ready, _, _ = select.select([fd], [], [], DEADLINE_S)
        assert ready, f"{len(data)} of {count} bytes"
        part = os.read(fd, count - len(data))
        assert part, f"end after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def pump_thread_ids() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    return [task.name for task in tasks if (task / "comm").read_text().strip() == "strato-pump"]


def cpu_ns(thread_id: str) -> int:
    return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[0])


def test_fifo_to_socket_to_fifo_20_mib_arrive_unchanged(pump: Pump, fds: Descriptors, tmp_path: Path) -> None:
    payload = os.urandom(MIB) * 20
    spare = fds.fifo(tmp_path / "in", os.O_RDWR)
    source = fds.fifo(tmp_path / "in", os.O_RDONLY)
    sink_reader = fds.fifo(tmp_path / "out", os.O_RDWR)
    sink = fds.fifo(tmp_path / "out", os.O_WRONLY)
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        pump.add(source, left.fileno(), tag=1, limit=len(payload))
        pump.add(right.fileno(), sink, tag=2, limit=len(payload))
        writer = threading.Thread(target=lambda: write_all(spare, payload))
        writer.start()
        received = read_exactly(sink_reader, len(payload))
        writer.join()
        events = wait_events(pump, 2)
    assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
    assert {(event.tag, event.kind, event.bytes) for event in events} == {
        (1, PumpEventKind.DONE, len(payload)),
        (2, PumpEventKind.DONE, len(payload)),
    }


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def test_blocking_descriptors_keep_their_flags(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    os.write(writer, b"x")
    assert read_exactly(reader, 1) == b"x"
    assert os.get_blocking(source) and os.get_blocking(sink)
    pump.remove(handle)


def test_limit_hit_with_more_data_following_leaves_the_rest(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    pump.add(source, sink, tag=5, limit=1000)
    os.write(writer, b"a" * 1000 + b"b" * 500)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes, event.tag, event.errno) == (PumpEventKind.DONE, 1000, 5, 0)
    assert read_exactly(reader, 1000) == b"a" * 1000
    assert os.read(source, 4096) == b"b" * 500
    assert not readable(reader)


def test_limit_zero_is_done_at_once(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    os.write(writer, b"never")
    _, sink = fds.pipe()
    pump.add(source, sink, tag=1, limit=0)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.DONE, 0)
    assert os.read(source, 10) == b"never"


def test_set_limit_after_the_bytes_passed_is_done_at_once(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    os.write(writer, b"12345")
    assert read_exactly(reader, 5) == b"12345"
    wait_moved(pump, handle, 5)
    assert pump.events() == []
    pump.set_limit(handle, 5)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.DONE, 5)
    pump.set_limit(handle, 3)
    assert pump.events() == []


def test_set_limit_before_the_bytes_finishes_exactly_there(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    os.write(writer, b"123")
    assert read_exactly(reader, 3) == b"123"
    pump.set_limit(handle, 5)
    assert pump.stats(handle).state == PumpState.RUNNING
    os.write(writer, b"45678")
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.DONE, 5)
    assert read_exactly(reader, 2) == b"45"


def test_set_limit_inside_the_buffer_drops_what_was_read_beyond(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    os.set_blocking(sink, False)
    fill(sink)
    handle = pump.add(source, sink, tag=1)
    os.write(writer, b"x" * 5000)
    wait_read(pump, handle, 5000)
    pump.set_limit(handle, 10)
    filler = read_exactly(reader, 65536)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.DONE, 10)
    assert filler == b"f" * 65536
    assert os.read(reader, 100) == b"x" * 10


def fill(fd: int) -> int:
    total = 0
    while True:
        try:
            total += os.write(fd, b"f" * 4096)
        except BlockingIOError:
            return total


def test_client_that_never_reads_costs_no_cpu_and_remove_is_prompt(
    pump: Pump, fds: Descriptors, tmp_path: Path
) -> None:
    source, writer = fds.pipe()
    fds.fifo(tmp_path / "out", os.O_RDWR)
    sink = fds.fifo(tmp_path / "out", os.O_WRONLY)
    handle = pump.add(source, sink, tag=1)
    os.set_blocking(writer, False)
    # The fifo, one buffer and the source pipe take their fill; then nothing moves.
    deadline = time.monotonic() + DEADLINE_S
    while pump.stats(handle).bytes_read < 2 * 65536:
        assert time.monotonic() < deadline, pump.stats(handle)
        try:
            os.write(writer, b"x" * 65536)
        except BlockingIOError:
            time.sleep(0.001)
    fill(writer)
    (thread,) = pump_thread_ids()
    before = cpu_ns(thread)
    time.sleep(0.5)  # the measured interval, not a wait for something
    spent = cpu_ns(thread) - before
    started = time.monotonic()
    pump.remove(handle)
    assert time.monotonic() - started < 1.0
    assert spent < 5_000_000, f"{spent} ns of CPU in 500 ms of waiting"
    assert pump.events() == []


def test_reader_of_an_idle_fifo_can_be_killed(pump: Pump, fds: Descriptors, tmp_path: Path) -> None:
    left, right = socket.socketpair()
    keep = fds.fifo(tmp_path / "out", os.O_RDWR)
    with left, right:
        handle = pump.add(right.fileno(), keep, tag=1)
        left.sendall(b"hello")
        script = (
            "import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); print(os.read(f,5),flush=True); os.read(f,1)"
        )
        reader = subprocess.Popen(
            ["/usr/bin/python3", "-ISc", script, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "b'hello'\n"
        wait_for_state(reader.pid, "S")
        reader.send_signal(signal.SIGKILL)
        assert reader.wait(DEADLINE_S) == -signal.SIGKILL
        reader.stdout.close()
        pump.remove(handle)


def wait_for_state(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != wanted:
        assert state != "D"
        assert time.monotonic() < deadline, state
        time.sleep(0.001)


def test_destination_closed_reports_and_drains(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=3, keep_on_dst_error=True)
    fds.close(reader)
    os.write(writer, b"x" * 10)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.errno) == (PumpEventKind.DST_ERROR, 32)
    write_all(writer, b"y" * MIB)
    wait_moved(pump, handle, MIB + 10)
    assert pump.stats(handle).state == PumpState.DRAINING
    pump.set_limit(handle, MIB + 20)
    os.write(writer, b"z" * 50)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.DONE, MIB + 20)


def test_destination_closed_ends_the_stream_unless_told_otherwise(pump: Pump, fds: Descriptors) -> None:
    left, right = socket.socketpair()
    source, writer = fds.pipe()
    with left:
        handle = pump.add(source, left.fileno(), tag=3)
        right.close()
        os.write(writer, b"x")
        (event,) = wait_events(pump, 1)
        assert (event.kind, event.errno) == (PumpEventKind.DST_ERROR, 32)
        assert pump.stats(handle).state == PumpState.FINISHED


def test_full_destination_that_is_closed_later_reports(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1, keep_on_dst_error=True)
    fds.close(sink)
    producer = threading.Thread(target=lambda: write_all(writer, b"x" * (4 * 65536)))
    producer.start()
    wait_read(pump, handle, 65536 + 4096)
    fds.close(reader)
    (event,) = wait_events(pump, 1)
    producer.join(DEADLINE_S)
    assert event.kind == PumpEventKind.DST_ERROR
    wait_moved(pump, handle, 4 * 65536)


def test_writers_gone_while_a_spare_end_is_held_does_not_spin(
    pump: Pump, fds: Descriptors, tmp_path: Path
) -> None:
    spare = fds.fifo(tmp_path / "in", os.O_RDWR)
    source = fds.fifo(tmp_path / "in", os.O_RDONLY | os.O_NONBLOCK)
    reader, sink = fds.pipe()
    pump.add(source, sink, tag=1)
    for word in (b"one", b"two", b"three"):
        writer = fds.fifo(tmp_path / "in", os.O_WRONLY)
        os.write(writer, word)
        assert read_exactly(reader, len(word)) == word
        fds.close(writer)
    (thread,) = pump_thread_ids()
    before = cpu_ns(thread)
    time.sleep(0.3)  # the measured interval
    assert cpu_ns(thread) - before < 5_000_000
    assert pump.events() == []
    fds.close(spare)
    (event,) = wait_events(pump, 1)
    assert (event.kind, event.bytes) == (PumpEventKind.SRC_EOF, 11)


def test_fifo_without_any_writer_yet_is_waited_for(pump: Pump, fds: Descriptors, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    source = fds.fifo(tmp_path / "in", os.O_RDONLY | os.O_NONBLOCK)
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    assert pump.stats(handle).state == PumpState.RUNNING
    writer = fds.fifo(tmp_path / "in", os.O_WRONLY)
    os.write(writer, b"late")
    assert read_exactly(reader, 4) == b"late"
    fds.close(writer)
    assert wait_events(pump, 1)[0].kind == PumpEventKind.SRC_EOF


def test_pty_hang_up_is_the_end_and_input_arrives(pump: Pump, fds: Descriptors) -> None:
    master, slave = pty.openpty()
    fds.own(master, slave)
    tty.setraw(slave, termios.TCSANOW)
    reader, sink = fds.pipe()
    source, writer = fds.pipe()
    pump.add(master, sink, tag=1)
    input_handle = pump.add(source, master, tag=2)
    os.write(writer, b"typed")
    assert read_exactly(slave, 5) == b"typed"
    os.write(slave, b"shown")
    assert read_exactly(reader, 5) == b"shown"
    fds.close(slave)
    (event,) = wait_events(pump, 1)
    assert (event.tag, event.kind, event.bytes) == (1, PumpEventKind.SRC_EOF, 5)
    pump.remove(input_handle)
    assert os.get_blocking(master), "O_NONBLOCK must be taken back"


def test_append_file_and_dev_null_take_everything(pump: Pump, fds: Descriptors, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before ")
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    null = os.open("/dev/null", os.O_WRONLY)
    fds.own(file, null)
    first_source, first = fds.pipe()
    second_source, second = fds.pipe()
    pump.add(first_source, file, tag=1)
    pump.add(second_source, null, tag=2)
    for writer in (first, second):
        write_all(writer, b"x" * MIB)
        fds.close(writer)
    events = wait_events(pump, 2)
    assert {(event.tag, event.kind, event.bytes) for event in events} == {
        (1, PumpEventKind.SRC_EOF, MIB),
        (2, PumpEventKind.SRC_EOF, MIB),
    }
    assert log.read_bytes() == b"before " + b"x" * MIB


def test_regular_file_is_a_source(pump: Pump, fds: Descriptors, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"d" * 300_000)
    source = os.open(tmp_path / "data", os.O_RDONLY)
    fds.own(source)
    reader, sink = fds.pipe()
    pump.add(source, sink, tag=1)
    assert read_exactly(reader, 300_000) == b"d" * 300_000
    assert wait_events(pump, 1)[0].kind == PumpEventKind.SRC_EOF


def test_close_dst_decides_when_the_reader_sees_the_end(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1, close_dst=False)
    fds.close(sink, writer)
    wait_events(pump, 1)
    assert not readable(reader)
    pump.remove(handle)
    assert os.read(reader, 1) == b""


def test_one_descriptor_serves_as_source_and_destination(pump: Pump, fds: Descriptors) -> None:
    client, server = socket.socketpair()
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    with client, server:
        pump.add(source, server.fileno(), tag=1)
        pump.add(server.fileno(), sink, tag=2)
        os.write(writer, b"ping")
        assert client.recv(10) == b"ping"
        client.sendall(b"pong")
        assert read_exactly(reader, 4) == b"pong"


def test_300_streams_at_once_all_arrive(pump: Pump, fds: Descriptors) -> None:
    reader, sink = fds.pipe()
    writers = []
    for tag in range(300):
        source, writer = fds.pipe()
        writers.append(writer)
        pump.add(source, sink, tag=tag)
    drained = bytearray()
    drainer = threading.Thread(target=lambda: drained.extend(read_exactly(reader, 300 * 3000)))
    drainer.start()
    for writer in writers:
        write_all(writer, b"x" * 3000)
        fds.close(writer)
    events = wait_events(pump, 300)
    drainer.join()
    assert {event.tag for event in events} == set(range(300))
    assert {(event.kind, event.bytes) for event in events} == {(PumpEventKind.SRC_EOF, 3000)}
    assert len(drained) == 900_000
    assert len(pump_thread_ids()) == 1


def test_add_remove_churn_under_load_leaks_nothing(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    null = os.open("/dev/null", os.O_WRONLY)
    fds.own(null)
    steady = pump.add(source, null, tag=0)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            os.write(writer, b"x" * 65536)

    producer = threading.Thread(target=load)
    producer.start()
    other_source, other_writer = fds.pipe()
    reader, sink = fds.pipe()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for turn in range(1000):
        handle = pump.add(other_source, sink, tag=turn)
        os.write(other_writer, b"y")
        pump.remove(handle)
    after = len(list(Path("/proc/self/fd").iterdir()))
    stop.set()
    producer.join()
    assert after == before
    assert pump.events() == []
    assert pump.stats(steady).bytes_moved > 0
    with pytest.raises(FileNotFoundError, match="no stream"):
        pump.remove(handle)
    os.set_blocking(reader, False)


def test_event_of_a_removed_stream_is_not_delivered(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    _, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    fds.close(writer)
    assert select.select([pump], [], [], DEADLINE_S)[0]
    pump.remove(handle)
    assert not readable(pump.fileno())
    assert pump.events() == []


def test_socket_reset_is_a_source_error(pump: Pump, fds: Descriptors) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    _, sink = fds.pipe()
    with listener, server:
        pump.add(server.fileno(), sink, tag=1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        (event,) = wait_events(pump, 1)
        assert (event.kind, event.errno) == (PumpEventKind.SRC_ERROR, 104)


def test_closed_descriptor_is_refused(pump: Pump, fds: Descriptors) -> None:
    _, sink = fds.pipe()
    with pytest.raises(OSError, match=r"Cannot duplicate source descriptor 9999: Bad file descriptor"):
        pump.add(9999, sink, tag=1)


def test_forked_child_is_refused_and_leaves_the_parents_pump_alone(pump: Pump, fds: Descriptors) -> None:
    source, writer = fds.pipe()
    reader, sink = fds.pipe()
    handle = pump.add(source, sink, tag=1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pump.stats(handle)
        except PumpOwnerError:
            pump.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.write(writer, b"alive")
    assert read_exactly(reader, 5) == b"alive"


def test_close_ends_the_thread(fds: Descriptors) -> None:
    pump = Pump()
    source, _ = fds.pipe()
    _, sink = fds.pipe()
    pump.add(source, sink, tag=1)
    assert len(pump_thread_ids()) == 1
    pump.close()
    pump.close()
    assert pump_thread_ids() == []
    with pytest.raises(ValueError, match="closed"):
        pump.events()
