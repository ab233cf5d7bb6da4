"""What a sandbox tells containerd, whatever its guest does: order, exactly one exit, error codes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from shim import container, sandbox, stdio
from shim.agent_proto.generated import agent_pb2
from shim.config import Settings, ShimSettings
from shim.errors import (
    AlreadyExistsError,
    DeadlineError,
    GuestProtocolError,
    NotFoundError,
    RemoteError,
    RevokedError,
    SandboxError,
    ShimError,
    SpecError,
    StateError,
    UnimplementedError,
    WrongStateError,
    describe,
)
from shim.protos.generated import task_pb2

from .fake_guest import DEADLINE_S, EXEC_SPEC, Bench, refuse, run, until

pytestmark = pytest.mark.native


def kill_request(number: int = 15, exec_id: str = "") -> task_pb2.KillRequest:
    return task_pb2.KillRequest(id="c1", exec_id=exec_id, signal=number)


def vm_runs(bench: Bench) -> bool:
    return Path(f"/proc/{bench.preparation.vmm_pid}").exists()


def test_life_of_a_container_is_told_in_order() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.agent.exit(42)
        assert await bench.wait() == 42
        deleted = await bench.task.delete(task_pb2.DeleteRequest(id="c1"))
        assert (deleted.exit_status, deleted.exited_at.seconds) == (42, 1_700_000_000)
        assert await bench.topics() == ["create", "start", "exit c1", "delete"]
        await bench.task.shutdown(task_pb2.ShutdownRequest())
        assert bench.ended.is_set()
        assert not bench.layout.root.joinpath("state.json").exists() or bench.shared.present == set()

    run(test)


def test_files_are_shown_to_the_guest_before_it_is_asked_and_taken_back_when_it_refuses() -> None:
    async def test(bench: Bench) -> None:
        share = {"tag": "rootfs", "name": "c1"}
        shown = [("x-strato-add-share", {**share, "directory": "/rootfs/c1"})]

        async def look_and_refuse(request: Any) -> Message | None:
            assert bench.vmm.commands == shown
            raise UnimplementedError("no")

        bench.agent.behaviour["CreateContainer"] = look_and_refuse
        await bench.agent.boot()
        with pytest.raises(ShimError):
            await bench.create()
        assert bench.vmm.commands == [*shown, ("x-strato-remove-share", share)]

    run(test)


def test_exit_before_start_has_answered_is_told_after_the_start() -> None:
    async def test(bench: Bench) -> None:
        await bench.agent.boot()
        await bench.create()
        bench.sandbox.network._done = True

        async def exit_first(request: Any) -> Message | None:
            await bench.agent.exit(0)
            await until(lambda: bench.sandbox.containers["c1"].init.early_exit is not None)
            return None

        bench.agent.behaviour["StartContainer"] = exit_first
        await bench.start()
        assert await bench.wait() == 0
        assert await bench.topics() == ["create", "start", "exit c1"]

    run(test)


def test_exit_reported_twice_is_told_once() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.agent.exit(1)
        await bench.agent.exit(2)
        await bench.agent.report(agent_pb2.Event(oom=agent_pb2.OutOfMemory(container_id="c1")))
        await until(lambda: len(bench.sender.sent) == 4)
        assert await bench.topics() == ["create", "start", "exit c1", "oom"]
        assert await bench.wait() == 1

    run(test)


def test_flood_of_oom_reports_is_told_once() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        for _ in range(100):
            await bench.agent.report(agent_pb2.Event(oom=agent_pb2.OutOfMemory(container_id="c1")))
        await bench.agent.exit(0)
        assert await bench.wait() == 0
        assert await bench.topics() == ["create", "start", "oom", "exit c1"]

    run(test)


def test_second_hello_finds_nobody() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        with socket.socket(socket.AF_UNIX) as again, pytest.raises(OSError, match=r"No such file|refused"):
            again.connect(str(bench.layout.hello))

    run(test)


def test_exit_of_init_waits_for_its_execs_and_kills_them() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.exec("e1")
        await bench.agent.exit(3)
        await until(lambda: bool(bench.agent.called("SignalProcess")))
        assert "exit c1" not in await bench.topics()
        assert bench.agent.called("SignalProcess")[0].all
        await bench.agent.exit(137, "e1")
        assert await bench.wait() == 3
        assert (await bench.topics())[-2:] == ["exit e1", "exit c1"]

    run(test)


def test_exit_of_init_with_an_exec_that_never_reports_comes_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "LAST_EXECS_TIMEOUT_S", 0.05)

    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.exec("e1")
        await bench.agent.exit(3)
        assert await bench.wait() == 3
        assert await bench.wait("e1") == 137
        assert (await bench.topics())[-2:] == ["exit e1", "exit c1"]

    run(test)


def test_death_of_the_vm_ends_everything_once_with_137() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.exec("e1")
        os.kill(bench.preparation.vmm_pid, signal.SIGKILL)
        assert await bench.wait() == 137
        assert (await bench.topics())[-2:] == ["exit e1", "exit c1"]
        with pytest.raises(NotFoundError):
            await bench.task.kill(kill_request())
        await bench.task.delete(task_pb2.DeleteRequest(id="c1"))

    run(test)


def test_delete_of_an_only_container_ends_the_vm_without_asking_the_guest() -> None:
    async def test(bench: Bench) -> None:
        bench.preparation.plan.spec["linux"] = {"namespaces": [{"type": "pid"}]}
        await bench.running()
        await bench.agent.exit(0)
        await bench.wait()

        await bench.task.delete(task_pb2.DeleteRequest(id="c1"))

        await until(lambda: not vm_runs(bench))
        assert "RemoveContainer" not in [name for name, _ in bench.agent.calls]
        assert (await bench.topics())[-1] == "delete"
        assert bench.sandbox.failure is None
        await bench.task.shutdown(task_pb2.ShutdownRequest())
        assert bench.ended.is_set()

    run(test)


def test_delete_of_a_container_that_others_can_join_leaves_the_vm() -> None:
    async def test(bench: Bench) -> None:
        bench.preparation.plan.spec["linux"] = {"namespaces": [{"type": "pid"}]}
        bench.preparation.spec = {"annotations": {"io.kubernetes.cri.sandbox-id": "c1"}}
        await bench.running()
        await bench.agent.exit(0)
        await bench.wait()

        await bench.task.delete(task_pb2.DeleteRequest(id="c1"))

        assert vm_runs(bench)
        assert "RemoveContainer" in [name for name, _ in bench.agent.calls]

    run(test)


def test_gap_in_the_guests_events_fails_the_sandbox() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.agent.report(agent_pb2.Event(), seq=7)
        assert await bench.wait() == 137
        assert isinstance(bench.sandbox.failure, GuestProtocolError)

    run(test)


def test_guest_that_closes_the_connection_fails_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "VM_END_TIMEOUT_S", 0.05)

    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.agent._server.close(grace_s=0)
        assert await bench.wait() == 137
        assert "lost" in str(bench.sandbox.failure)

    run(test)


def test_death_of_the_holder_kills_its_container() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        os.kill(bench.preparation.holder_pid, signal.SIGKILL)
        await until(lambda: bool(bench.agent.called("SignalProcess")))
        request = bench.agent.called("SignalProcess")[0]
        assert (request.signal, request.all) == (signal.SIGKILL, True)
        await bench.agent.exit(137)
        assert await bench.wait() == 137

    run(test)


def test_create_that_the_agent_refuses_is_undone_without_exit_event() -> None:
    async def test(bench: Bench) -> None:
        bench.agent.behaviour["CreateContainer"] = refuse()
        await bench.agent.boot()
        with pytest.raises(RemoteError, match="no such file or directory"):
            await bench.create()
        assert bench.agent.called("RemoveContainer")
        assert bench.shared.present == set()
        assert await bench.topics() == []
        await bench.task.shutdown(task_pb2.ShutdownRequest())
        assert bench.ended.is_set()

    run(test)


def test_create_without_hello_ends_with_the_deadline() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(DeadlineError, match=r"not created in 0.3 s: .* waiting for the guest, which"):
            await bench.create()
        assert bench.sandbox.idle

    shim = ShimSettings(create_timeout_s=0.3)
    run(test, dataclasses.replace(Settings(), shim=shim))


def test_create_that_the_agent_does_not_answer_says_so() -> None:
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async def test(bench: Bench) -> None:
        bench.agent.behaviour["CreateContainer"] = never
        await bench.agent.boot()
        with pytest.raises(DeadlineError, match=r"still waiting for the agent's answer to CreateContainer"):
            await bench.create()

    shim = ShimSettings(create_timeout_s=1.0)
    run(test, dataclasses.replace(Settings(), shim=shim))


def test_create_with_a_hello_of_garbage_says_so() -> None:
    async def test(bench: Bench) -> None:
        bench.agent.hello = b"\xff" * 100
        await bench.agent.boot()
        with pytest.raises(SandboxError) as caught:
            await bench.create()
        assert "announced a message of 4294967295 bytes" in describe(caught.value)

    run(test)


def test_create_that_is_deleted_meanwhile_is_revoked_and_undone() -> None:
    async def test(bench: Bench) -> None:
        creation = asyncio.ensure_future(bench.create())
        await until(lambda: "c1" in bench.shared.present)
        with pytest.raises(NotFoundError):
            await bench.task.delete(task_pb2.DeleteRequest(id="c1"))
        with pytest.raises(RevokedError):
            await creation
        assert bench.shared.present == set()
        assert bench.sandbox.idle

    run(test)


def test_start_that_fails_has_no_exit_event_and_can_be_deleted() -> None:
    async def test(bench: Bench) -> None:
        await bench.agent.boot()
        await bench.create()
        bench.sandbox.network._done = True
        bench.agent.behaviour["StartContainer"] = refuse()
        with pytest.raises(RemoteError):
            await bench.start()
        await bench.task.delete(task_pb2.DeleteRequest(id="c1"))
        assert await bench.topics() == ["create", "delete"]

    run(test)


def test_shutdown_with_a_container_left_does_nothing() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.task.shutdown(task_pb2.ShutdownRequest())
        assert not bench.ended.is_set()
        state = await bench.task.state(task_pb2.StateRequest(id="c1"))
        assert state.status == 2

    run(test)


def test_shutdown_that_containerd_does_not_wait_for_goes_on_to_its_end() -> None:
    async def test(bench: Bench) -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(_: Any) -> None:
            asked.set()
            await may_answer.wait()

        bench.agent.behaviour["DestroySandbox"] = slow
        await bench.agent.boot()
        await bench.sandbox.booted()
        call = asyncio.ensure_future(bench.task.shutdown(task_pb2.ShutdownRequest()))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert bench.ended.is_set()
        assert vm_runs(bench)

        may_answer.set()
        await bench.sandbox.shut_down()

        assert not vm_runs(bench)
        assert "host_cleaned" in bench.sandbox.phases.reached

    run(test)


def test_pause_and_resume_are_told() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.task.pause(task_pb2.PauseRequest(id="c1"))
        assert (await bench.task.state(task_pb2.StateRequest(id="c1"))).status == 4
        await bench.task.resume(task_pb2.ResumeRequest(id="c1"))
        assert (await bench.topics())[-2:] == ["paused", "resumed"]

    run(test)


def test_update_reaches_the_guest_without_what_belongs_to_the_host() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        request = task_pb2.UpdateTaskRequest(id="c1")
        request.resources.value = b'{"memory": {"limit": 67108864}, "cpu": {"cpus": "0", "quota": 50000}}'
        await bench.task.update(request)
        sent = json.loads(bench.agent.called("UpdateContainer")[0].linux_resources)
        assert sent == {"memory": {"limit": 67108864}, "cpu": {"quota": 50000}}

    run(test)


def test_pids_are_the_holder_and_numbers_that_no_host_process_has() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.exec("e1")

        async def processes(request: Any) -> Message | None:
            return agent_pb2.ListProcessesResponse(
                processes=[agent_pb2.Process(pid=9, init=True), agent_pb2.Process(pid=17, command="sh")]
            )

        bench.agent.behaviour["ListProcesses"] = processes
        found = [entry.pid for entry in (await bench.task.pids(task_pb2.PidsRequest(id="c1"))).processes]
        assert found[0] == bench.preparation.holder_pid
        assert len(found) == 3
        assert all(pid > 4194304 for pid in found[1:])

    run(test)


REFUSALS = {
    "create again": (lambda b: b.create(), AlreadyExistsError),
    "start again": (lambda b: b.start(), WrongStateError),
    "start unknown exec": (lambda b: b.start("nope"), NotFoundError),
    "delete running": (lambda b: b.task.delete(task_pb2.DeleteRequest(id="c1")), WrongStateError),
    "exec again": (lambda b: b.exec("e1"), AlreadyExistsError),
    "resume running": (lambda b: b.task.resume(task_pb2.ResumeRequest(id="c1")), WrongStateError),
    "state of unknown": (lambda b: b.task.state(task_pb2.StateRequest(id="x")), NotFoundError),
    "wait for unknown": (lambda b: b.task.wait(task_pb2.WaitRequest(id="x")), NotFoundError),
    "update with garbage": (lambda b: b.task.update(task_pb2.UpdateTaskRequest(id="c1")), SpecError),
    "checkpoint": (
        lambda b: b.task.checkpoint(task_pb2.CheckpointTaskRequest(id="c1")),
        UnimplementedError,
    ),
    "scheme": (
        lambda b: b.task.create(task_pb2.CreateTaskRequest(id="c2", bundle="/b", stdout="http://x")),
        ShimError,
    ),
}


@pytest.mark.parametrize(("call", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_wrong_request_is_refused_with_its_error(call: Any, error: type[ShimError]) -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.exec("e1")
        with pytest.raises(error):
            await call(bench)

    run(test)


def test_stopped_container_refuses_with_the_codes_clients_know() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        await bench.agent.exit(0)
        await bench.wait()
        with pytest.raises(StateError):
            await bench.exec("e1")
        with pytest.raises(NotFoundError):
            await bench.task.kill(kill_request())
        with pytest.raises(NotFoundError):
            await bench.task.stats(task_pb2.StatsRequest(id="c1"))
        with pytest.raises(WrongStateError):
            await bench.task.pause(task_pb2.PauseRequest(id="c1"))

    run(test)


def test_exec_that_was_not_started_cannot_be_killed() -> None:
    async def test(bench: Bench) -> None:
        await bench.running()
        request = task_pb2.ExecProcessRequest(id="c1", exec_id="e1")
        request.spec.value = EXEC_SPEC
        await bench.task.exec(request)
        with pytest.raises(StateError):
            await bench.task.kill(kill_request(exec_id="e1"))

    run(test)


def test_connect_to_unknown_container_answers_pid_zero() -> None:
    async def test(bench: Bench) -> None:
        answer = await bench.task.connect(task_pb2.ConnectRequest(id="x"))
        assert (answer.shim_pid, answer.task_pid) == (os.getpid(), 0)

    run(test)


def test_output_reaches_the_file_and_delete_waits_for_its_count(tmp_path: Path) -> None:
    target = tmp_path / "out"

    async def test(bench: Bench) -> None:
        await bench.agent.boot()
        await bench.create(stdout=f"file://{target}")
        bench.sandbox.network._done = True
        await bench.start()
        await bench.agent.exit(0, stdout_bytes=5)
        assert await bench.wait() == 0
        deletion = asyncio.ensure_future(bench.task.delete(task_pb2.DeleteRequest(id="c1")))
        await asyncio.sleep(0.05)
        assert not deletion.done()
        await asyncio.get_running_loop().sock_sendall(bench.agent.streams["c1//stdout"], b"hello")
        async with asyncio.timeout(DEADLINE_S):
            await deletion
        assert target.read_bytes() == b"hello"

    run(test)


def test_fifo_that_nobody_reads_delays_neither_exit_nor_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_TIMEOUT_S", 0.2)
    fifo = tmp_path / "out"
    os.mkfifo(fifo)

    async def test(bench: Bench) -> None:
        await bench.agent.boot()
        await bench.create(stdout=str(fifo))
        bench.sandbox.network._done = True
        await bench.start()
        size = 200_000
        sending = asyncio.ensure_future(
            asyncio.get_running_loop().sock_sendall(bench.agent.streams["c1//stdout"], bytes(size))
        )
        await bench.agent.exit(0, stdout_bytes=size)
        assert await bench.wait() == 0
        async with asyncio.timeout(DEADLINE_S):
            await bench.task.delete(task_pb2.DeleteRequest(id="c1"))
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    run(test)


def test_stdin_ends_with_close_io_only_and_with_its_byte_count(tmp_path: Path) -> None:
    fifo = tmp_path / "in"
    os.mkfifo(fifo)

    async def test(bench: Bench) -> None:
        await bench.agent.boot()
        await bench.create(stdin=str(fifo))
        bench.sandbox.network._done = True
        await bench.start()
        loop = asyncio.get_running_loop()
        for word in (b"one", b"two"):  # a client that detaches, and another one
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, word)
            os.close(writer)
            assert await loop.sock_recv(bench.agent.streams["c1//stdin"], 3) == word
        assert bench.agent.called("CloseStdin") == []
        await bench.task.close_io(task_pb2.CloseIORequest(id="c1", stdin=True))
        await until(lambda: bool(bench.agent.called("CloseStdin")))
        assert bench.agent.called("CloseStdin")[0].after_bytes == 6

    run(test)
