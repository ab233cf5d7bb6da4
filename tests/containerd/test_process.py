"""What config.json says about the process and its surroundings holds inside the container."""

import signal
from pathlib import Path

import pytest

from tests.framework.ctr import Ctr
from tests.framework.guest_programs import compile_static
from tests.framework.specs import Change, Spec, SpecFactory

pytestmark = pytest.mark.containerd


@pytest.fixture
def specs(ctr: Ctr, tmp_path: Path) -> SpecFactory:
    """Makes complete config.json files."""
    return SpecFactory(ctr, tmp_path)


def run_spec(ctr: Ctr, specs: SpecFactory, script: str, change: Change | None = None) -> str:
    """Runs a shell script in a container whose spec `change` has touched; its output."""
    name = ctr.new_id()
    path = specs.write(name, ["sh", "-c", script], change)
    return ctr.call(*ctr.run_spec(name, path, "--rm")).check().text


def test_environment_is_the_images_with_the_users_over_it(ctr: Ctr) -> None:
    text = ctr.run("env", options=("--env", "ONE=1", "--env", "TWO=two words")).check().text
    assert {"ONE=1", "TWO=two words", "PATH=/usr/bin:/bin:/sbin"} <= set(text.splitlines())


def test_working_directory_is_set(ctr: Ctr) -> None:
    assert ctr.run("pwd", options=("--cwd", "/tmp")).check().text == "/tmp"


@pytest.mark.not_on(r"^1\.6", reason="its ctr has no --user")
def test_user_by_name_gets_uid_and_gid(ctr: Ctr) -> None:
    assert ctr.run("id", options=("--user", "user")).check().text.startswith("uid=1000(user) gid=1000(user)")


def test_user_with_additional_groups_and_umask(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o077}

    lines = run_spec(ctr, specs, "id -u; id -g; id -G; umask", change).splitlines()
    assert lines == ["7", "8", "8 9 10", "0077"]


def test_hostname_is_the_one_of_the_spec(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["hostname"] = "strato-host"

    assert run_spec(ctr, specs, "hostname", change) == "strato-host"


def test_capabilities_are_exactly_those_asked_for(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        some = ["CAP_CHOWN", "CAP_NET_RAW"]
        spec["process"]["capabilities"] = {"bounding": some, "effective": some, "permitted": some}

    text = run_spec(ctr, specs, "grep Cap /proc/self/status", change)
    masks = dict(line.split() for line in text.splitlines())
    wanted = (1 << 0) | (1 << 13)  # CAP_CHOWN, CAP_NET_RAW of linux/capability.h
    assert int(masks["CapEff:"], 16) == int(masks["CapBnd:"], 16) == int(masks["CapPrm:"], 16) == wanted
    assert int(masks["CapInh:"], 16) == int(masks["CapAmb:"], 16) == 0


def test_no_new_privileges_is_set(ctr: Ctr) -> None:
    assert ctr.run("grep", "NoNewPrivs", "/proc/self/status").check().text.split() == ["NoNewPrivs:", "1"]


def test_resource_limits_are_set(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["rlimits"] = [
            {"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]

    assert run_spec(ctr, specs, "ulimit -Sn; ulimit -Hn; ulimit -c", change).split() == ["111", "222", "0"]


def test_sysctls_are_set_in_the_containers_namespaces(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345"}

    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"
    assert run_spec(ctr, specs, script, change).split() == ["1", "12345"]


def test_masked_paths_show_nothing(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["linux"]["maskedPaths"] = ["/etc/passwd", "/home", "/no/such/path"]

    script = "wc -c < /etc/passwd; ls -A /home | wc -l"
    assert run_spec(ctr, specs, script, change).split() == ["0", "0"]


def test_read_only_paths_refuse_writes(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["linux"]["readonlyPaths"] = ["/proc/sys", "/etc"]

    script = "for f in /etc/new /proc/sys/vm/overcommit_memory; do (echo 1 > $f) 2>&- || echo no; done"
    assert run_spec(ctr, specs, script, change).split() == ["no", "no"]


def test_read_only_root_refuses_writes(ctr: Ctr) -> None:
    result = ctr.run("touch", "/new", options=("--read-only",))
    assert result.status == 1
    assert "Read-only file system" in result.error_text


def test_devices_of_every_container_are_there_and_work(ctr: Ctr) -> None:
    script = (
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; "
        "head -c 4 /dev/zero | wc -c; echo x > /dev/null; head -c 8 /dev/urandom | wc -c; "
        "readlink /dev/fd; readlink /dev/stdin; grep ' /dev/shm ' /proc/mounts | cut -d' ' -f3"
    )
    lines = ctr.run("sh", "-c", script).check().text.splitlines()
    assert lines == ["4", "8", "/proc/self/fd", "/proc/self/fd/0", "tmpfs"]


def test_mounts_of_every_container_are_there_with_their_types(ctr: Ctr) -> None:
    text = ctr.run("awk", "{print $2, $3}", "/proc/mounts").check().text
    wanted = {
        "/proc": "proc",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
        "/dev/mqueue": "mqueue",
        "/sys": "sysfs",
        "/run": "tmpfs",
    }
    found = dict(line.split() for line in text.splitlines())
    assert {point: found.get(point) for point in wanted} == wanted


@pytest.mark.usefixtures("strato_only")
def test_mount_of_the_cgroup_shows_the_containers_own(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        options = ["nosuid", "noexec", "nodev", "relatime", "ro"]
        entry = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}
        spec["mounts"].append(entry)
        spec["linux"]["resources"]["memory"] = {"limit": 123 << 20}

    script = "grep ' /sys/fs/cgroup ' /proc/mounts | cut -d' ' -f3; cat /sys/fs/cgroup/memory.max"
    assert run_spec(ctr, specs, script, change).split() == ["cgroup2", str(123 << 20)]


def test_devices_that_no_rule_allows_cannot_be_opened(ctr: Ctr) -> None:
    # 10:200 is /dev/net/tun, which anybody may open; 1:3 is /dev/null, which every container has.
    script = (
        "mknod /tmp/tun c 10 200 && mknod /tmp/null c 1 3 && echo made; "
        "(exec 3</tmp/tun) 2>/dev/null || echo denied; echo x > /tmp/null && echo written"
    )
    lines = ctr.run("sh", "-c", script).check().text.splitlines()
    assert lines == ["made", "denied", "written"]


def test_devices_that_a_rule_allows_can_be_opened(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["linux"]["resources"]["devices"] = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"},
        ]

    script = (
        "mknod /tmp/tun c 10 200; (exec 3</tmp/tun) && echo read; "
        "(exec 3<>/tmp/tun) 2>/dev/null || echo no write"
    )
    assert run_spec(ctr, specs, script, change).splitlines() == ["read", "no write"]


def test_seccomp_profile_denies_its_system_calls(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        }

    script = "mkdir /tmp/denied 2>&1; grep Seccomp: /proc/self/status"
    lines = run_spec(ctr, specs, script, change).splitlines()
    assert "not supported" in lines[0]
    assert lines[1].split() == ["Seccomp:", "2"]


def test_oom_score_adjustment_is_set(ctr: Ctr, specs: SpecFactory) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["oomScoreAdj"] = 500

    assert run_spec(ctr, specs, "cat /proc/self/oom_score_adj", change) == "500"


def test_init_is_pid_one_and_sees_only_the_container(ctr: Ctr) -> None:
    lines = ctr.run("sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'").check().text.splitlines()
    assert lines[0] == "1"
    assert int(lines[1]) <= 4


def test_init_that_dies_of_a_fault_ends_with_128_plus_its_signal(ctr: Ctr, tmp_path: Path) -> None:
    program = compile_static("fault", tmp_path)
    options = ("--mount", f"type=bind,src={program},dst=/fault,options=bind:ro")
    wanted = {"memory": signal.SIGSEGV, "instruction": signal.SIGILL, "arithmetic": signal.SIGFPE}
    found = {fault: ctr.run("/fault", fault, options=options).status for fault in wanted}
    assert found == {fault: 128 + number for fault, number in wanted.items()}


def test_orphans_of_a_container_are_adopted_by_its_init(ctr: Ctr) -> None:
    script = "(sleep 77 &); while ! grep -qx 'PPid:.1' /proc/[0-9]*/status; do :; done; ps -o ppid,args"
    assert "1 sleep 77" in " ".join(ctr.run("sh", "-c", script).check().text.split())


def test_root_of_the_spec_may_be_an_unpacked_directory(ctr: Ctr, specs: SpecFactory) -> None:
    (specs.root / "marker").write_text("here\n")
    assert run_spec(ctr, specs, "cat /marker; echo back > /made") == "here"
    assert (specs.root / "made").read_text() == "back\n"


def test_process_may_be_given_by_absolute_path_or_by_search(ctr: Ctr) -> None:
    assert ctr.run("/bin/echo", "a").check().text == ctr.run("echo", "a").check().text == "a"


def test_arguments_arrive_unchanged(ctr: Ctr) -> None:
    words = ["", "two words", "new\nline", "ünïcödé", "$HOME", "'\"\\"]
    result = ctr.run("sh", "-c", 'for a in "$@"; do printf "%s|" "$a"; done', "sh", *words)
    assert result.check().stdout.decode() == "".join(f"{word}|" for word in words)


def test_guest_kernel_defends_itself_against_speculation(ctr: Ctr) -> None:
    # The two that need no microcode, which an emulated processor does not have.
    folder = "/sys/devices/system/cpu/vulnerabilities"
    text = ctr.run("cat", f"{folder}/spectre_v1", f"{folder}/spectre_v2").check().text
    words = [line.partition(":")[0] for line in text.splitlines()]
    assert len(words) == 2 and set(words) <= {"Mitigation", "Not affected"}, text
