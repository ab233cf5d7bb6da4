import pytest

from tests.lab.console import Console, Sign

pytestmark = pytest.mark.unit


def test_marked_lines_are_signs_and_others_stay_as_they_are() -> None:
    console = Console()

    found = console.feed(b"[    1.0] kernel\r\nstrato-lab: up 3.41\r\nstrato-lab: ended 7 9.50\r\n")

    assert found == ["[    1.0] kernel", Sign("up", ("3.41",)), Sign("ended", ("7", "9.50"))]


def test_lines_may_come_in_pieces() -> None:
    console = Console()

    assert console.feed(b"strato-lab: be") == []
    assert console.feed(b"at 1\nrest") == [Sign("beat", ("1",))]


def test_mark_is_found_behind_what_the_kernel_printed_into_the_line() -> None:
    assert Console().feed(b"[    5.0] tun: strato-lab: beat 0\n") == [Sign("beat", ("0",))]


def test_mark_is_found_before_what_the_kernel_printed_into_the_line() -> None:
    console = Console()

    assert console.feed(b"strato-lab: beat 1[    5.0] kvm: text\n") == [Sign("beat", ("1",))]
    assert console.tail() == "strato-lab: beat 1[    5.0] kvm: text"


@pytest.mark.parametrize("line", ["strato-lab: beat [    5.0] text", "strato-lab: ended 0[    5.0] text"])
def test_mark_in_pieces_is_none(line: str) -> None:
    assert Console().feed(f"{line}\n".encode()) == [line]


def test_words_of_a_command_are_not_taken_for_signs() -> None:
    assert Console().feed(b"strato-lab: something else\n") == ["strato-lab: something else"]


def test_tail_leaves_out_beats_and_keeps_the_unfinished_line() -> None:
    console = Console()
    console.feed(b"one\nstrato-lab: up 1\nstrato-lab: beat 0\nKernel pan")

    assert console.tail() == "one\nstrato-lab: up 1\nKernel pan"
    assert console.tail(1) == "Kernel pan"
