"""Guests that have a program of the tests, and scripts for that of the differential tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.differential.differences import parse
from tests.differential.workbench import compile_program
from tests.framework import compiler, guest_image
from tests.framework.vm import Vm, VmFactory, vm_factory

MakeVms = Callable[..., VmFactory]
"""Makes a `VmFactory` of a program's name and of scripts by name, each a list of lines."""


@contextmanager
def equipped(directory: Path) -> Iterator[MakeVms]:
    """Makes factories whose guests have a program; their files are below `directory`."""

    def make(program: str, **scripts: list[str]) -> VmFactory:
        script = program == "script"
        files = {program: compile_program(program) if script else compiler.guest_program(program)}
        for name, lines in scripts.items():
            files[name] = directory / f"{name}.script"
            files[name].write_text("".join(f"{line}\n" for line in lines))
        return stack.enter_context(vm_factory(guest_image.build(directory, files)))

    with ExitStack() as stack:
        yield make


def results(vm: Vm, script: str, folder: str) -> list[str]:
    """Have the guest obey a script (tests/differential/guest/script.c) in a folder; what each call gave."""
    begin = len(vm.output)
    assert vm.ask(f"run /script /{script} {folder}") == "exit 0"
    return list(parse(vm.output[begin:]).values())
