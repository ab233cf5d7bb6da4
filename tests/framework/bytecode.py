"""Bytecode of this checkout: an installed release has its own, a checkout only what earlier runs wrote.

Compiling costs a process a mebibyte that it keeps, and in the KVM lab seconds at each start of a program.
"""

import compileall

from .runtime import CHECKOUT

PACKAGES = ("shim", "vmm", "tools", "tests")


def compile_packages() -> None:
    """Write what is missing or old. A file that does not compile is the business of whoever imports it."""
    for name in PACKAGES:
        compileall.compile_dir(CHECKOUT / name, quiet=2)
