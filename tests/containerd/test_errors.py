"""Whatever is wrong with a container: a clear text for the user, in bounded time, and nothing left
(the daemon fixture).
"""

import os
import stat
from pathlib import Path

import pytest

from tests.framework.command import Result
from tests.framework.ctr import IMAGE, Ctr
from tests.framework.daemons import TestDaemon
from tests.framework.specs import Spec, SpecFactory

pytestmark = pytest.mark.containerd
BOUND_S = 30.0


def refused(result: Result, *any_of: str) -> None:
    """Asserts that the user sees a failure whose text holds one of the phrases."""
    assert result.status != 0
    assert any(phrase in result.error_text for phrase in any_of), result.error_text


def test_missing_program_is_named(ctr: Ctr) -> None:
    result = ctr.run("/no/such/program", timeout_s=BOUND_S)
    refused(result, "executable file not found", "no such file")
    assert "/no/such/program" in result.error_text


def test_missing_program_found_by_path_search_is_named(ctr: Ctr) -> None:
    result = ctr.run("nosuchprogram", timeout_s=BOUND_S)
    refused(result, "executable file not found", "no such file")
    assert "nosuchprogram" in result.error_text


def test_file_that_is_not_executable_is_permission_denied(ctr: Ctr) -> None:
    refused(ctr.run("/etc/passwd", timeout_s=BOUND_S), "permission denied")


def test_working_directory_that_is_a_file_is_named(ctr: Ctr) -> None:
    result = ctr.run("true", options=("--cwd", "/etc/passwd"), timeout_s=BOUND_S)
    refused(result, "not a directory")
    assert "/etc/passwd" in result.error_text


@pytest.mark.not_on(r"^1\.6", reason="its ctr has no --user")
def test_unknown_user_name_is_named(ctr: Ctr) -> None:
    result = ctr.run("true", options=("--user", "nosuchuser"), timeout_s=BOUND_S)
    # containerd's own words.
    refused(result, "no users found")


def test_unknown_mount_type_is_refused(ctr: Ctr) -> None:
    options = ("--mount", "type=nosuchfs,src=none,dst=/mnt")
    refused(ctr.run("true", options=options, timeout_s=BOUND_S), "nosuchfs", "no such device")


def test_missing_bind_source_is_named(ctr: Ctr, tmp_path: Path) -> None:
    source = tmp_path / "missing"
    options = ("--mount", f"type=bind,src={source},dst=/mnt,options=rbind")
    refused(ctr.run("true", options=options, timeout_s=BOUND_S), "missing")


def test_spec_without_process_is_refused(ctr: Ctr, tmp_path: Path) -> None:
    def without_process(spec: Spec) -> None:
        del spec["process"]

    name = ctr.new_id()
    spec = SpecFactory(ctr, tmp_path).write(name, ["true"], without_process)
    result = ctr.call(*ctr.run_spec(name, spec, "--rm", "--null-io"), timeout_s=BOUND_S)
    refused(result, "process", "Process", "panic")


def test_spec_without_arguments_is_refused(ctr: Ctr, tmp_path: Path) -> None:
    name = ctr.new_id()
    spec = SpecFactory(ctr, tmp_path).write(name, [])
    refused(ctr.call(*ctr.run_spec(name, spec, "--rm"), timeout_s=BOUND_S), "args")


def test_root_path_that_does_not_exist_is_named(ctr: Ctr, tmp_path: Path) -> None:
    def elsewhere(spec: Spec) -> None:
        spec["root"]["path"] = str(tmp_path / "nowhere")

    name = ctr.new_id()
    spec = SpecFactory(ctr, tmp_path).write(name, ["true"], elsewhere)
    refused(ctr.call(*ctr.run_spec(name, spec, "--rm"), timeout_s=BOUND_S), "nowhere")


def test_unknown_namespace_path_is_named(ctr: Ctr) -> None:
    options = ("--with-ns", "network:/run/netns/strato-does-not-exist")
    refused(ctr.run("true", options=options, timeout_s=BOUND_S), "strato-does-not-exist", "no such file")


@pytest.mark.usefixtures("strato_only")
class TestConfiguration:
    """Broken configurations of the runtime itself."""

    def test_absent_kernel_is_named(self, daemon: TestDaemon) -> None:
        daemon.write_config(vm={"kernel": "/no/such/vmlinux"})
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), "/no/such/vmlinux")

    def test_kernel_that_is_no_kernel_fails_in_words(self, daemon: TestDaemon, tmp_path: Path) -> None:
        kernel = tmp_path / "vmlinux"
        kernel.write_bytes(os.urandom(100_000))
        daemon.write_config(vm={"kernel": str(kernel)})
        refused(daemon.ctr.run("true", timeout_s=90), "vmlinux", "kernel")

    def test_more_memory_than_the_host_has_is_refused(self, daemon: TestDaemon) -> None:
        daemon.write_config(vm={"default_memory_mib": 1 << 30})
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), "memory")

    def test_too_little_memory_for_the_guest_fails_in_bounded_time(self, daemon: TestDaemon) -> None:
        daemon.write_config(vm={"default_memory_mib": 64}, shim={"create_timeout_s": 20})
        result = daemon.ctr.run("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", timeout_s=60)
        assert result.status != 0

    def test_configuration_that_is_no_toml_is_named(self, daemon: TestDaemon) -> None:
        daemon.config_path.write_text("this is [ not toml\n")
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), str(daemon.config_path))

    def test_unknown_key_is_named(self, daemon: TestDaemon) -> None:
        daemon.write_config(vm={"nosuchkey": 1})
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), "nosuchkey")

    def test_configuration_that_cannot_be_read_is_named(self, daemon: TestDaemon) -> None:
        daemon.config_path.unlink()
        daemon.config_path.mkdir()
        try:
            refused(daemon.ctr.run("true", timeout_s=BOUND_S), str(daemon.config_path))
        finally:
            daemon.config_path.rmdir()

    def test_runtime_options_file_is_heeded(self, ctr: Ctr, tmp_path: Path) -> None:
        options = tmp_path / "options.toml"
        options.write_text('[vm]\nkernel = "/kernel/of/options"\n')
        result = ctr.run("true", options=("--runtime-config-path", str(options)), timeout_s=BOUND_S)
        refused(result, "/kernel/of/options")

    @pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
    def test_missing_emulator_is_named(self, daemon: TestDaemon) -> None:
        daemon.write_config(programs={"qemu": "/no/such/qemu"})
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), "/no/such/qemu")

    @pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
    def test_emulator_that_fails_at_once_is_reported_with_its_words(
        self, daemon: TestDaemon, tmp_path: Path
    ) -> None:
        program = tmp_path / "qemu"
        program.write_text("#!/bin/sh\necho the emulator is broken >&2\nexit 3\n")
        program.chmod(stat.S_IRWXU)
        daemon.write_config(programs={"qemu": str(program)})
        refused(daemon.ctr.run("true", timeout_s=BOUND_S), "the emulator is broken")


@pytest.mark.usefixtures("strato_only")
class TestRefusals:
    """What a microVM cannot or does not do is refused by the place in config.json."""

    def test_host_network_is_refused(self, ctr: Ctr) -> None:
        refused(ctr.run("true", options=("--net-host",), timeout_s=BOUND_S), "linux.namespaces")

    def test_host_device_is_refused(self, ctr: Ctr) -> None:
        result = ctr.run("true", options=("--device", "/dev/loop-control"), timeout_s=BOUND_S)
        refused(result, "linux.devices")

    @pytest.mark.parametrize(
        "kind", ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    )
    def test_hooks_are_refused(self, ctr: Ctr, tmp_path: Path, kind: str) -> None:
        def with_hook(spec: Spec) -> None:
            spec["hooks"] = {kind: [{"path": "/bin/true"}]}

        name = ctr.new_id()
        spec = SpecFactory(ctr, tmp_path).write(name, ["true"], with_hook)
        refused(ctr.call(*ctr.run_spec(name, spec, "--rm"), timeout_s=BOUND_S), f"hooks.{kind}")


def test_after_all_these_failures_a_container_runs(ctr: Ctr) -> None:
    assert ctr.call(*ctr.run_arguments(ctr.new_id(), ["true"], "--rm"), timeout_s=BOUND_S).status == 0
    assert IMAGE in ctr.call("image", "ls", "-q").check().text
