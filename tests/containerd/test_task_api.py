"""The task API spoken directly: error codes, states, waiters, events; what `ctr` cannot show."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim.protos.generated import bootstrap_pb2, events_pb2, task_pb2, task_types_pb2
from tests.framework import host
from tests.framework.daemons import DIRECT_NAMESPACE, TestDaemon
from tests.framework.shim_process import ShimProcess
from tests.framework.specs import Spec, SpecFactory
from tests.framework.ttrpc import RpcError

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.not_on("-grpc$", reason="it calls the shim by ttrpc itself"),
]

UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS = 2, 3, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED = 9, 12
CREATED, RUNNING, STOPPED = (
    task_types_pb2.Status.CREATED,
    task_types_pb2.Status.RUNNING,
    task_types_pb2.Status.STOPPED,
)


@pytest.fixture
def sleeper(daemon: TestDaemon, tmp_path: Path) -> Iterator[ShimProcess]:
    """A shim that has been started for a container which sleeps; nothing is created yet."""
    name = daemon.ctr.new_id("direct")
    spec = SpecFactory(daemon.ctr, tmp_path).spec(name, ["sleep", "1000"])
    with ShimProcess(daemon, name, spec, tmp_path) as shim:
        shim.start()
        yield shim


def code_of(call: object, *arguments: object, **options: object) -> int:
    """The code a call fails with; 0 when it succeeds."""
    assert callable(call)
    try:
        call(*arguments, **options)
    except RpcError as error:
        return error.code
    return 0


def test_states_of_a_life(sleeper: ShimProcess) -> None:
    created = sleeper.create().pid
    assert sleeper.state().status == CREATED
    assert sleeper.start_task() == created
    assert sleeper.state().status == RUNNING
    sleeper.kill()
    answer = sleeper.wait()
    assert answer.exit_status == 137
    state = sleeper.state()
    assert (state.status, state.exit_status) == (STOPPED, 137)
    deleted = sleeper.delete()
    assert (deleted.pid, deleted.exit_status) == (created, 137)
    assert deleted.exited_at == answer.exited_at == state.exited_at
    assert code_of(sleeper.state) == NOT_FOUND


def test_connect_right_after_create_names_a_live_task_pid(sleeper: ShimProcess) -> None:
    pid = sleeper.create().pid
    info = sleeper.connect_info()
    assert info.task_pid == pid
    assert host.process(info.task_pid) is not None
    assert host.process(info.shim_pid) is not None


def test_task_pid_is_in_the_network_namespace_of_the_container(sleeper: ShimProcess) -> None:
    pid = sleeper.create().pid
    own = Path(f"/proc/{os.getpid()}/ns/net").readlink()
    assert Path(f"/proc/{pid}/ns/net").readlink() != own


def test_create_of_an_existing_container_is_already_exists(sleeper: ShimProcess) -> None:
    sleeper.create()
    assert code_of(sleeper.create) in (ALREADY_EXISTS, UNKNOWN if not sleeper.is_strato else ALREADY_EXISTS)
    assert sleeper.state().status == CREATED


def test_unknown_container_is_not_found(sleeper: ShimProcess) -> None:
    sleeper.create()
    client = sleeper.client
    for method, request in (
        ("State", task_pb2.StateRequest(id="nobody")),
        ("Wait", task_pb2.WaitRequest(id="nobody")),
        ("Kill", task_pb2.KillRequest(id="nobody", signal=9)),
        ("Delete", task_pb2.DeleteRequest(id="nobody")),
        ("Start", task_pb2.StartRequest(id="nobody")),
        ("Pids", task_pb2.PidsRequest(id="nobody")),
        ("ResizePty", task_pb2.ResizePtyRequest(id="nobody", width=1, height=1)),
    ):
        assert code_of(client.call, method, request, Empty) == NOT_FOUND, method


def test_unknown_method_and_service_are_unimplemented(sleeper: ShimProcess) -> None:
    assert code_of(sleeper.client.call, "NoSuchMethod", Empty(), Empty) == UNIMPLEMENTED


def test_many_waiters_all_get_the_exit(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    request = task_pb2.WaitRequest(id=sleeper.container_id)
    calls = [sleeper.client.start("Wait", request) for _ in range(20)]
    assert sleeper.state().status == RUNNING
    sleeper.kill()
    answers = [call.result(task_pb2.WaitResponse) for call in calls]
    assert {answer.exit_status for answer in answers} == {137}
    assert len({answer.exited_at.ToNanoseconds() for answer in answers}) == 1
    assert sleeper.wait().exit_status == 137


def test_delete_of_a_running_task_fails_and_changes_nothing(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    assert code_of(sleeper.delete) != 0
    assert sleeper.state().status == RUNNING


def test_delete_of_a_created_task_ends_it(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.delete()
    assert code_of(sleeper.state) == NOT_FOUND


def test_kill_of_an_ended_task_is_not_found(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    sleeper.kill()
    sleeper.wait()
    assert code_of(sleeper.kill) == NOT_FOUND


def test_signal_zero_asks_whether_a_task_lives(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    sleeper.kill(0)
    assert sleeper.state().status == RUNNING


def test_start_twice_fails(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    assert code_of(sleeper.start_task) != 0
    assert sleeper.state().status == RUNNING


def test_states_of_an_exec(sleeper: ShimProcess) -> None:
    init = sleeper.create().pid
    sleeper.start_task()
    sleeper.exec("e1", ["sh", "-c", "sleep 1000"])
    assert sleeper.state("e1").status == CREATED
    assert code_of(sleeper.exec, "e1", ["true"]) == ALREADY_EXISTS
    pid = sleeper.start_task("e1")
    assert pid not in (0, init)
    assert sleeper.state("e1").status == RUNNING
    sleeper.kill(15, "e1")
    assert sleeper.wait("e1").exit_status == 143
    assert sleeper.state("e1").status == STOPPED
    assert sleeper.delete("e1").exit_status == 143
    assert code_of(sleeper.state, "e1") == NOT_FOUND
    assert sleeper.state().status == RUNNING


def test_start_of_an_unknown_exec_is_not_found(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    assert code_of(sleeper.start_task, "never") == NOT_FOUND


def test_pids_answer_for_a_merely_created_task(sleeper: ShimProcess) -> None:
    pid = sleeper.create().pid
    request = task_pb2.PidsRequest(id=sleeper.container_id)
    answer = sleeper.client.call("Pids", request, task_pb2.PidsResponse)
    assert pid in [entry.pid for entry in answer.processes]


def test_shutdown_is_ignored_while_a_container_is_left(sleeper: ShimProcess) -> None:
    sleeper.create()
    shim_pid = sleeper.connect_info().shim_pid
    sleeper.shutdown()
    assert sleeper.state().status == CREATED
    assert host.process(shim_pid) is not None


def test_events_of_a_life_come_in_order_and_once(sleeper: ShimProcess) -> None:
    pid = sleeper.create().pid
    sleeper.start_task()
    sleeper.exec("e1", ["sh", "-c", "exit 3"])
    sleeper.start_task("e1")
    sleeper.wait("e1")
    sleeper.delete("e1")
    sleeper.kill()
    sleeper.wait()
    sleeper.delete()

    def complete(events: list[tuple[str, Message]]) -> bool:
        return any(
            isinstance(event, events_pb2.TaskDelete) and event.id in ("", sleeper.container_id)
            for _, event in events
        )

    sleeper.events.wait_for(complete)
    topics = [topic for topic in sleeper.events.topics if topic != "/tasks/delete"]
    assert topics == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
    ]
    exits = [
        event for event in sleeper.events.of_topic("/tasks/exit") if isinstance(event, events_pb2.TaskExit)
    ]
    assert [(event.id, event.exit_status) for event in exits] == [("e1", 3), (sleeper.container_id, 137)]
    assert exits[0].pid != exits[1].pid == pid


def test_exit_of_init_is_the_last_exit(sleeper: ShimProcess) -> None:
    sleeper.create()
    sleeper.start_task()
    for name in ("e1", "e2", "e3"):
        sleeper.exec(name, ["sleep", "1000"])
        sleeper.start_task(name)
    sleeper.kill()
    sleeper.wait()
    sleeper.events.wait_for(lambda events: sum(topic == "/tasks/exit" for topic, _ in events) == 4)
    exits = [
        event for event in sleeper.events.of_topic("/tasks/exit") if isinstance(event, events_pb2.TaskExit)
    ]
    assert exits[-1].id == sleeper.container_id
    assert {event.exit_status for event in exits} == {137}


@pytest.mark.usefixtures("strato_only")
def test_lack_of_memory_is_told_before_the_exit(daemon: TestDaemon, tmp_path: Path) -> None:
    def limited(spec: Spec) -> None:
        spec["linux"]["resources"]["memory"] = {"limit": 64 << 20}

    name = daemon.ctr.new_id("direct")
    process = ["dd", "if=/dev/zero", "of=/dev/null", "bs=120M", "count=1"]
    spec = SpecFactory(daemon.ctr, tmp_path).spec(name, process, limited)
    with ShimProcess(daemon, name, spec, tmp_path) as shim:
        shim.start()
        shim.create()
        shim.start_task()
        assert shim.wait().exit_status == 137
        shim.events.wait_for(lambda events: any(topic == "/tasks/exit" for topic, _ in events))
        assert shim.events.topics == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]
        (event,) = shim.events.of_topic("/tasks/oom")
        assert isinstance(event, events_pb2.TaskOOM)
        assert event.container_id == name


def test_missing_program_fails_create_or_start_without_an_exit_event(
    daemon: TestDaemon, tmp_path: Path
) -> None:
    name = daemon.ctr.new_id("direct")
    spec = SpecFactory(daemon.ctr, tmp_path).spec(name, ["/no/such/program"])
    with ShimProcess(daemon, name, spec, tmp_path) as shim:
        shim.start()
        with pytest.raises(RpcError, match=r"no such file|executable file not found"):
            shim.create()
        assert "/tasks/exit" not in shim.events.topics
        assert "/tasks/start" not in shim.events.topics


def test_config_json_that_is_no_json_fails_in_words(daemon: TestDaemon, tmp_path: Path) -> None:
    name = daemon.ctr.new_id("direct")
    with ShimProcess(daemon, name, {}, tmp_path) as shim:
        (shim.bundle / "config.json").write_text('{"ociVersion": "1.0.2", ')
        started = shim.verb("start")
        if started.status != 0:
            text = (started.stdout + started.stderr).decode()
            assert any(word in text for word in ("config.json", "JSON", "unexpected EOF")), text
            return
        with shim.connect(started.stdout) as client:
            request = task_pb2.CreateTaskRequest(id=name, bundle=os.fspath(shim.bundle))
            with pytest.raises(RpcError, match=r"(?i)config.json|json|unexpected"):
                client.call("Create", request, task_pb2.CreateTaskResponse)


@pytest.mark.usefixtures("strato_only")
class TestStartDialects:
    """What `start` prints depends on who asks; nothing but the answer is ever printed."""

    def test_flags_alone_get_the_bare_address(self, sleeper: ShimProcess) -> None:
        answer = sleeper.verb("start")
        assert answer.status == 0
        assert answer.stderr == b""
        assert answer.stdout.startswith(b"unix:///")
        assert b"\n" not in answer.stdout

    def test_bootstrap_params_get_a_bootstrap_result(self, sleeper: ShimProcess) -> None:
        params = bootstrap_pb2.BootstrapParams(instance_id=sleeper.container_id, namespace=DIRECT_NAMESPACE)
        answer = sleeper.verb("start", stdin=params.SerializeToString())
        assert (answer.status, answer.stderr) == (0, b"")
        result = bootstrap_pb2.BootstrapResult.FromString(answer.stdout)
        assert (result.version, result.protocol) == (3, "ttrpc")
        assert result.address.startswith("unix:///")

    def test_second_start_of_a_group_gives_the_same_address(self, sleeper: ShimProcess) -> None:
        assert sleeper.verb("start").stdout == sleeper.verb("start").stdout

    def test_address_and_pid_are_written_to_the_bundle(self, sleeper: ShimProcess) -> None:
        assert (sleeper.bundle / "address").read_bytes() == sleeper.verb("start").stdout
        pid = int((sleeper.bundle / "shim.pid").read_text())
        assert host.process(pid) is not None

    def test_info_prints_a_runtime_info(self, sleeper: ShimProcess) -> None:
        answer = sleeper.verb("", flags=["-info"])
        assert (answer.status, answer.stderr) == (0, b"")
        assert b"strato" in answer.stdout

    def test_version_is_printed(self, sleeper: ShimProcess) -> None:
        answer = sleeper.verb("", flags=["-v"])
        assert answer.status == 0
        assert b"strato" in answer.stdout.lower()

    def test_unimplemented_calls_say_so(self, sleeper: ShimProcess) -> None:
        sleeper.create()
        request = task_pb2.CheckpointTaskRequest(id=sleeper.container_id, path="/nowhere")
        assert code_of(sleeper.client.call, "Checkpoint", request, Empty) == UNIMPLEMENTED

    def test_frame_beyond_four_mebibytes_is_refused_and_the_connection_lives(
        self, sleeper: ShimProcess
    ) -> None:
        sleeper.create()
        sleeper.client.send_raw(b"\0" * ((4 << 20) + 1), 10001)
        assert sleeper.client.receive(10001, time.monotonic() + 20).status.code == 8  # ResourceExhausted
        with sleeper.connect((sleeper.bundle / "address").read_bytes()) as second:
            request = task_pb2.StateRequest(id=sleeper.container_id)
            assert second.call("State", request, task_pb2.StateResponse).status == CREATED

    def test_state_file_names_the_processes(self, sleeper: ShimProcess) -> None:
        pid = sleeper.create().pid
        (path,) = sleeper.daemon.state_root.glob("*/state.json")
        state = json.loads(path.read_text())
        assert state["containers"][sleeper.container_id]["holder"]["pid"] == pid
        assert host.process(state["vmm"]["pid"]) is not None
