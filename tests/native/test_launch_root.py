"""strato-launch's own root: what a program sees in it, what it can do there, and that no more is left."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.paths import launcher
from vmm.sys import LaunchError, launch

from .test_launch import run

pytestmark = pytest.mark.native

SHELL = ("--bind-program", "/bin/sh")


@pytest.fixture(autouse=True)
def nothing_left(no_descriptor_left: None) -> Iterator[None]:
    before = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def root(tmp_path: Path) -> list[str]:
    """The options that make a root, to be completed with what it shows."""
    directory = tmp_path / "root"
    directory.mkdir()
    return ["--new", "pid,mount", "--mount-proc", "--root", str(directory)]


def shell(root: list[str], script: str, *options: str) -> str:
    """Run a script with a shell and what it needs in a root of its own; return its output."""
    code, output = run(*root, *SHELL, *options, "--", "/bin/sh", "-c", script)
    assert code == 0, output
    return output


def everything_below(root: list[str], *options: str) -> list[str]:
    """Walk the root from inside; return every path that is no process's."""
    output = shell(
        root, "/usr/bin/find / -path /proc -prune -o -print", "--bind-program", "/usr/bin/find", *options
    )
    return sorted(line for line in output.splitlines() if not line.startswith("/usr/bin/find: "))


def test_nothing_but_what_was_listed_is_visible(root: list[str], tmp_path: Path) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    shown.mkdir()
    hidden.mkdir()
    (shown / "file").write_text("x")

    paths = everything_below(root, "--bind-ro", str(shown))

    programs = subprocess.run(
        ["ldd", "/bin/sh", "/usr/bin/find"], capture_output=True, text=True, check=True
    ).stdout
    libraries = {word for word in programs.split() if word.startswith("/") and not word.endswith(":")}
    listed = {"/bin/sh", "/usr/bin/find", "/etc/ld.so.cache", str(shown), str(shown / "file"), *libraries}
    listed |= {"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"}
    folders = {str(parent) for path in listed for parent in Path(path).parents}
    assert set(paths) - folders - {"/proc"} <= listed
    assert str(shown / "file") in paths
    assert str(hidden) not in paths


def test_paths_keep_their_names_and_have_their_access(root: list[str], tmp_path: Path) -> None:
    for name in ("data", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    script = f"""
        cat {tmp_path}/data/file
        echo new > {tmp_path}/folder/file
        echo new 2>&1 > {tmp_path}/data/file || echo refused
        echo new 2>&1 > /new || echo refused
    """
    options = ["--bind-program", "/bin/cat", "--bind-ro", f"{tmp_path}/data", "--bind", f"{tmp_path}/folder"]

    output = shell(root, script, *options)

    assert output.count("refused") == 2, output
    assert (tmp_path / "folder/file").read_text() == "new\n"
    assert (tmp_path / "data/file").read_text() == "data"


def test_only_code_can_be_executed(root: list[str], tmp_path: Path) -> None:
    for name in ("data", "code", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("#!/bin/sh\necho ran\n")
        (tmp_path / name / "program").chmod(0o755)
    options = [
        "--bind-ro",
        f"{tmp_path}/data",
        "--bind-code",
        f"{tmp_path}/code",
        "--bind",
        f"{tmp_path}/folder",
    ]

    output = shell(
        root, "; ".join(f"{tmp_path}/{name}/program 2>&1" for name in ("data", "folder", "code")), *options
    )

    assert output.count("ermission denied") == 2, output
    assert output.endswith("ran\n")


def test_devices_open_only_where_they_were_listed_as_such(root: list[str], tmp_path: Path) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    (tmp_path / "folder").mkdir()
    os.mknod(tmp_path / "folder/node", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    options = ["--dev", str(node), "--dev-ro", "/dev/null", "--bind", f"{tmp_path}/folder"]
    paths = (node, Path("/dev/null"), tmp_path / "folder/node")
    script = "; ".join(f"(: < {path}) 2>/dev/null && echo opened || echo refused" for path in paths)

    assert shell(root, script, *options).split() == ["opened", "opened", "refused"]


def test_set_user_id_programs_gain_nothing(root: list[str], tmp_path: Path) -> None:
    code, output = run(
        *root, "--bind-program", "/bin/grep", "--capabilities", "chown,mknod", "--no-new-privileges",
        "--", "/bin/grep", "-E", "^(Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs)", "/proc/self/status",
    )  # fmt: skip

    assert code == 0, output
    fields = dict(line.split() for line in output.splitlines())
    wanted = f"{1 << 0 | 1 << 27:016x}"
    none = f"{0:016x}"
    assert fields == {
        "CapInh:": none,
        "CapPrm:": wanted,
        "CapEff:": wanted,
        "CapBnd:": wanted,
        "CapAmb:": none,
        "NoNewPrivs:": "1",
    }


def test_proc_tells_of_processes_of_the_namespace_only(root: list[str]) -> None:
    names = shell(root, "cd /proc; echo *").split()

    assert {name for name in names if name.isdecimal()} == {"1"}
    assert {name for name in names if not name.isdecimal()} == {"self", "thread-self"}
    assert "ro," in shell(
        root, "read -r x < /proc/self/mountinfo; while read -r l; do echo $l; done < /proc/self/mountinfo"
    )


def test_later_mounts_arrive_below_trees_only(root: list[str], tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name in ("tree", "folder"):
        (base / name / "point").mkdir(parents=True)
    subprocess.run(["mount", "--bind", base, base], check=True)
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    try:
        subprocess.run(["mount", "--make-shared", base], check=True)
        arguments = [
            *root, *SHELL, "--bind-program", "/bin/ls",
            "--bind-tree", f"{base}/tree", "--bind", f"{base}/folder",
            "--", "/bin/sh", "-c", f"echo ready; read x; ls {base}/tree/point {base}/folder/point",
        ]  # fmt: skip
        pid = launch(str(launcher()), arguments, stdio=(reader, out_writer, out_writer)).pid
        assert os.read(out_reader, 100) == b"ready\n"
        for name in ("tree", "folder"):
            subprocess.run(["mount", "-t", "tmpfs", "none", base / name / "point"], check=True)
            (base / name / "point" / f"in-{name}").touch()
        os.write(writer, b"go\n")
        os.waitpid(pid, 0)
        os.close(out_writer)
        out_writer = -1
        output = os.read(out_reader, 4096).decode()
    finally:
        subprocess.run(["umount", "--recursive", base], check=True)
        for fd in (reader, writer, out_reader, *((out_writer,) if out_writer >= 0 else ())):
            os.close(fd)

    assert "in-tree" in output
    assert "in-folder" not in output


def test_mounts_below_a_tree_come_along_and_are_as_harmless(root: list[str], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", tree / "below"], check=True)
    try:
        os.mknod(tree / "below/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        options = ["--bind-program", "/bin/ls", "--bind-tree", str(tree)]
        output = shell(root, f"ls {tree}/below; (: < {tree}/below/null) 2>&1 || echo refused", *options)
        readonly = shell(
            root, f"(: > {tree}/below/new) 2>&1 || echo refused", *options[:2], "--bind-tree-ro", str(tree)
        )
    finally:
        subprocess.run(["umount", tree / "below"], check=True)

    assert output.startswith("null\n") and output.endswith("refused\n")
    assert readonly.endswith("refused\n")


def test_program_brings_the_libraries_that_it_loads(root: list[str]) -> None:
    code, output = run(
        *root,
        "--bind-program",
        "/usr/bin/qemu-system-x86_64",
        "--",
        "/usr/bin/qemu-system-x86_64",
        "--version",
    )

    assert code == 0, output
    assert output.startswith("QEMU emulator")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--bind-ro", "/nonexistent/x"], "Cannot show /nonexistent/x: .*No such file or directory"),
        (["--bind-ro", "/usr/../etc"], r"must not contain \. or \.\."),
        (["--bind-program", "/etc/passwd"], "/etc/passwd is no program or library"),
        (["--bind-ro", "relative"], '"relative" must be absolute'),
    ],
)
def test_failure_is_told_by_its_path(root: list[str], options: list[str], text: str) -> None:
    with pytest.raises(LaunchError, match=text):
        launch(str(launcher()), [*root, *SHELL, *options, "--", "/bin/sh", "-c", "true"])


def test_mount_point_behind_a_link_of_a_shown_folder_is_refused(root: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "target").mkdir()
    (folder / "link").symlink_to(tmp_path / "target")

    with pytest.raises(LaunchError, match="symbolic link inside of another path"):
        options = ["--bind", str(folder), "--bind", str(folder / "link")]
        launch(str(launcher()), [*root, *SHELL, *options, "--", "/bin/sh", "-c", "true"])
