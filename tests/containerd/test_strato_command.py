"""The `strato` command beside running sandboxes: it reads what the shim has really written."""

import json

import pytest

from tests.framework.command import Background, Result, run
from tests.framework.daemons import TestDaemon
from tests.framework.sandbox import processes_of

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]


def words(daemon: TestDaemon, *arguments: str) -> list[str]:
    """A command line of the `strato` that belongs to the runtime under test."""
    return [str(daemon.options.runtime.programs[0] / "strato"), *arguments]


def strato(daemon: TestDaemon, *arguments: str) -> Result:
    """Runs `strato` as whoever has set up the daemon would."""
    return run(words(daemon, *arguments), env=daemon.containerd.environment())


@pytest.fixture
def talkative(daemon: TestDaemon) -> TestDaemon:
    """The daemon with a guest kernel that prints what it does, which costs time and is off by default."""
    daemon.write_config(vm={"kernel_params": "loglevel=7"})
    return daemon


def test_ps_tells_of_each_sandbox_with_its_processes_and_containers(daemon: TestDaemon) -> None:
    names = [daemon.ctr.run_detached("sleep", "1000") for _ in range(2)]
    found = {}
    for line in strato(daemon, "ps", "--json").check().text.splitlines():
        sandbox = json.loads(line)
        found[sandbox["sandbox_id"]] = sandbox
    assert set(found) == set(names)
    for name in names:
        pids = processes_of(daemon, name).pids
        assert found[name]["containers"] == {name: "running"}
        assert (found[name]["shim_pid"], found[name]["vmm_pid"]) == (pids["shim"], pids["vmm"])
        assert (found[name]["alive"], found[name]["namespace"]) == (True, daemon.ctr.namespace)
    rows = strato(daemon, "ps").check().text.splitlines()
    assert {row.split()[0] for row in rows[1:]} == set(names)
    for name in names:
        daemon.ctr.remove(name)
    assert [row.split()[0] for row in strato(daemon, "ps").check().text.splitlines()] == ["SANDBOX"]


def test_logs_are_those_of_shim_vmm_and_guest(talkative: TestDaemon) -> None:
    daemon = talkative
    name = daemon.ctr.run_detached("sleep", "1000")
    assert "guest said hello" in strato(daemon, "logs", name, "--source", "shim").check().text
    assert "msg=" in strato(daemon, "logs", name, "--source", "vmm").check().text
    assert "Universal TUN/TAP" in strato(daemon, "logs", name, "--source", "console").check().text
    # The beginning of a name is enough while it is no other's.
    assert strato(daemon, "logs", name[:-1]).check().text.count("==> ") == 3
    result = strato(daemon, "logs", "nobody")
    assert result.status == 1
    assert "nobody" in result.error_text


def test_console_follows_the_guest_to_its_end(talkative: TestDaemon) -> None:
    daemon = talkative
    name = daemon.ctr.run_detached("sleep", "1000")
    with Background(words(daemon, "console", name), env=daemon.containerd.environment()) as console:
        console.expect(b"Universal TUN/TAP")
        daemon.ctr.remove(name)
        assert console.wait(timeout_s=20).status == 0


def test_doctor_finds_nothing_missing_where_containers_run(daemon: TestDaemon) -> None:
    daemon.ctr.run("true").check()
    assert strato(daemon, "doctor").check().text.startswith("engine")
