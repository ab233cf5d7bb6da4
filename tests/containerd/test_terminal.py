"""Terminals: size at start, resize, echo, one merged stream, exit status; for init and exec."""

import pytest

from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS

pytestmark = pytest.mark.containerd
DAEMONS = ALL_DAEMONS

REPORT_SIZE = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"


def test_terminal_of_init_has_the_size_of_the_client(ctr: Ctr) -> None:
    script = "until stty size | grep -q '40 100'; do sleep 0.05; done; stty size"
    words = ctr.run_arguments(ctr.new_id(), ["sh", "-c", script], "--rm", "--tty")
    with ctr.terminal(*words, rows=40, columns=100) as terminal:
        terminal.expect(b"40 100")
        assert terminal.wait() == 0


def test_terminal_of_init_follows_resizes(ctr: Ctr) -> None:
    name = ctr.new_id()
    with ctr.terminal(*ctr.run_arguments(name, ["sh", "-c", REPORT_SIZE], "--rm", "--tty")) as terminal:
        terminal.expect(b"ready")
        terminal.resize(50, 132, b"50 132")
        terminal.resize(25, 81, b"25 81")
        ctr.kill(name).check()
        assert terminal.wait() == 137


def test_terminal_of_init_is_interactive(ctr: Ctr) -> None:
    words = ctr.run_arguments(ctr.new_id(), ["sh"], "--rm", "--tty")
    with ctr.terminal(*words) as terminal:
        terminal.expect(b"# ")
        terminal.write(b"test -t 0 -a -t 1 -a -t 2 && echo is''-a-terminal\n")
        terminal.expect(b"is-a-terminal")
        # Only a process that is in the foreground by now is sure to get the signal.
        terminal.write(b"sh -c 'echo in\"\"terruptible; exec sleep 1000'\n")
        terminal.expect(b"interruptible")
        terminal.write(b"\x03")
        terminal.expect(b"# ")
        terminal.write(b"exit 7\n")
        assert terminal.wait() == 7


def test_terminal_end_of_file_character_ends_the_shell(ctr: Ctr) -> None:
    with ctr.terminal(*ctr.run_arguments(ctr.new_id(), ["sh"], "--rm", "--tty")) as terminal:
        terminal.expect(b"# ")
        terminal.write(b"\x04")
        assert terminal.wait() == 0


def test_output_before_exit_on_a_terminal_is_complete(ctr: Ctr) -> None:
    script = "seq 1 20000; exit 3"
    words = ctr.run_arguments(ctr.new_id(), ["sh", "-c", script], "--rm", "--tty")
    with ctr.terminal(*words) as terminal:
        assert terminal.wait() == 3
        assert terminal.screen.split()[-1] == b"20000"
        assert len(terminal.screen.split()) == 20000


def test_exec_on_a_terminal_has_size_and_status(ctr: Ctr) -> None:
    name = ctr.run_detached("sleep", "1000")
    words = ("task", "exec", "--exec-id", "e1", "--tty", name, "sh", "-c", REPORT_SIZE)
    with ctr.terminal(*words, rows=33, columns=99) as terminal:
        terminal.expect(b"ready")
        terminal.resize(44, 111, b"44 111")
        ctr.kill(name, "SIGKILL", "--exec-id", "e1").check()
        assert terminal.wait() == 137
