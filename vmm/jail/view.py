"""What a strato-vmm sees of the host: a list of paths, worked out once and used twice.

strato-launch builds the root of a VM's mount namespace from it (`launch_options`), and strato-vmm allows
itself the same paths by Landlock (`vmm.jail.landlock`). `machine` is a pure function of a VmConfig in its
JSON form: the shim has no time for the classes of `vmm.config`. `installation` looks at the running
interpreter, which is the one that will run strato-vmm.

A path is the same inside and outside. Whatever is not listed is not there.
"""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

from ..libraries import library_path

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any


class Access(StrEnum):
    """How a path is seen; the values are strato-launch's options."""

    DATA = "--bind-ro"
    """To be read."""
    CODE = "--bind-code"
    """To be read and mapped as code."""
    PROGRAM = "--bind-program"
    """A program or library: with every library that loading it takes."""
    FOLDER = "--bind"
    """To be read and written: a folder, without what is mounted below it."""
    TREE = "--bind-tree"
    """To be read and written, with what is mounted below it now and later."""
    TREE_READONLY = "--bind-tree-ro"
    """To be read, with what is mounted below it now and later."""
    DEVICE = "--dev"
    """To be read and written, and may be a device."""
    DEVICE_READONLY = "--dev-ro"
    """To be read, and may be a device."""


class View:
    """One path and how it is seen. An ``optional`` one is left out where the host has no such file.

    ``origin`` is where the configuration names it, for messages.
    """

    __slots__ = ("access", "optional", "origin", "path")

    def __init__(self, access: Access, path: str, origin: str = "", *, optional: bool = False) -> None:
        self.access = access
        self.path = path
        self.origin = origin
        self.optional = optional

    def __repr__(self) -> str:
        return f"View({self.access.name}, {self.path!r}, optional={self.optional})"


SHARE_CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "setfcap", "mknod",
)  # fmt: skip
"""What the threads of a share keep, to act for each of the guest's users. No other thread has any."""

# Taking the others away, for QEMU's sake; files that belong to other users, opened at the start; room for the
# guest's console in a socket (SO_SNDBUFFORCE).
_START_CAPABILITIES = ("setpcap", "dac_override", "net_admin")

_FIRMWARE = ("qboot.rom", "pvh.bin", "linuxboot_dma.bin", "linuxboot.bin")


def interpreter() -> str:
    """Return the running interpreter's own file; a virtual environment's is a link to it."""
    return posixpath.realpath(sys.executable)


def command(before_main: str = "pass") -> list[str]:
    """Return the words that run strato-vmm with this interpreter and these import folders; its own follow.

    ``before_main`` is a statement to be executed once strato-vmm is imported, for who measures it.
    """
    # As `installation` shows them: a prefix may be reached by a link, which is not there inside.
    folders = [posixpath.realpath(folder) for folder in sys.path]
    # Most modules are the standard library's, and each folder before it would be asked for them in vain.
    standard = posixpath.realpath(posixpath.dirname(os.__file__))
    folders.sort(key=lambda folder: not folder.startswith(standard))
    # There is no garbage while modules are imported, and looking for it takes a twelfth of that time.
    code = (
        "import gc, sys; gc.disable(); "
        f"sys.path[:] = {folders!r}; "
        "from vmm import lean_import, lean_pathlib; lean_import.install(); lean_pathlib.install(); "
        f"from vmm.__main__ import main; {before_main}; sys.exit(main())"
    )
    return [interpreter(), "-IS", "-c", code]


def installation() -> list[View]:
    """Return what it takes to run this package's code with this interpreter."""
    package = posixpath.dirname(posixpath.dirname(posixpath.realpath(__file__)))
    views = [
        View(Access.PROGRAM, interpreter()),
        View(Access.CODE, package),
        View(Access.PROGRAM, _in_real_folder(library_path("libstrato_sys.so"))),
        View(Access.PROGRAM, _in_real_folder(library_path("libstrato_vmm.so"))),
        View(Access.DEVICE, "/dev/null"),
        View(Access.DEVICE, "/dev/urandom"),
    ]
    standard = {posixpath.dirname(os.__file__)}
    # Extension modules of the standard library may have a folder elsewhere.
    standard |= {folder for folder in sys.path if posixpath.basename(folder) == "lib-dynload"}
    standard |= {posixpath.realpath(folder) for folder in standard}
    views += [View(Access.CODE, folder) for folder in sorted(standard)]
    views += [View(Access.PROGRAM, path) for path in _cffi_backend()]
    return views


def machine(document: Mapping[str, Any]) -> list[View]:
    """Return what the VM of a configuration needs, which is valid and in its JSON form. Does no I/O."""
    boot = document["boot"]
    views = [
        View(Access.FOLDER, document["runtime_dir"], "runtime_dir"),
        View(Access.DATA, boot["kernel"], "boot.kernel"),
    ]
    if boot.get("initrd"):
        views.append(View(Access.DATA, boot["initrd"], "boot.initrd"))
    for index, drive in enumerate(document.get("drives") or ()):
        access = Access.DEVICE_READONLY if drive.get("readonly") else Access.DEVICE
        views.append(View(access, drive["path"], f"drives[{index}].path"))
    for index, share in enumerate(document.get("shares") or ()):
        if share.get("directory"):
            access = Access.TREE_READONLY if share.get("readonly") else Access.TREE
            views.append(View(access, share["directory"], f"shares[{index}].directory"))
    memory_file = (document.get("memory") or {}).get("file")
    if memory_file:
        views.append(View(Access.DATA, memory_file, "memory.file"))
    for index, folder in enumerate(_jail(document).get("folders") or ()):
        views.append(View(Access.TREE, folder, f"jail.folders[{index}]"))
    if any(net.get("tap_name") for net in document.get("nets") or ()):
        views.append(View(Access.DEVICE, "/dev/net/tun"))
    engine = document.get("engine") or "auto"
    if engine != "tcg":
        views.append(View(Access.DEVICE, "/dev/kvm", optional=True))
    qemu = (document.get("programs") or {}).get("qemu")
    if engine != "kvm" and qemu:
        views += _qemu(qemu)
    return views


def capabilities(document: Mapping[str, Any]) -> list[str]:
    """Return what strato-vmm may have until it has locked itself down."""
    wanted = list(_START_CAPABILITIES)
    if document.get("shares") or _jail(document).get("folders"):
        wanted += SHARE_CAPABILITIES  # a share of one of the folders may be added later
    return sorted(set(wanted))


def enabled(document: Mapping[str, Any]) -> bool:
    """Return whether the configuration wants the jail, which is the default."""
    return bool(_jail(document).get("enabled", True))


def launch_options(
    document: Mapping[str, Any], root: str, *, exists: Callable[[str], bool] = os.path.exists
) -> list[str]:
    """Return strato-launch's options that put the VM of a configuration into a root of its own.

    ``root`` is an empty folder. Mount and pid namespace are to be new.
    """
    options = ["--root", root, "--capabilities", ",".join(capabilities(document)), "--no-new-privileges"]
    for view in present([*installation(), *machine(document)], exists=exists):
        options += [view.access, view.path]
    return options


def present(views: Iterable[View], *, exists: Callable[[str], bool] = os.path.exists) -> Iterator[View]:
    """Leave out optional paths that the host does not have."""
    return (view for view in views if not view.optional or exists(view.path))


def _jail(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return document.get("jail") or {}


def _qemu(program: str) -> Iterator[View]:
    """QEMU's files; where each distribution has them."""
    prefix = posixpath.dirname(posixpath.dirname(program))
    architecture = posixpath.basename(program).removeprefix("qemu-system-")
    yield View(Access.PROGRAM, program, "programs.qemu")
    for library in (f"lib/{architecture}-linux-gnu", "lib64", "lib"):
        module = f"{prefix}/{library}/qemu/accel-tcg-{architecture}.so"
        yield View(Access.PROGRAM, module, optional=True)
    for folder in ("share/qemu", "share/seabios"):
        for name in _FIRMWARE:
            yield View(Access.DATA, f"{prefix}/{folder}/{name}", optional=True)


def _cffi_backend() -> list[str]:
    """The one module outside of the standard library that the package needs when it runs."""
    loaded = sys.modules.get("_cffi_backend")
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec("_cffi_backend")
        origin = None if spec is None else spec.origin
    return [] if origin is None else [_in_real_folder(origin)]


def _in_real_folder(path: str) -> str:
    """The path as it is found by an import folder without links; the file itself may be one."""
    folder, name = posixpath.split(path)
    return posixpath.join(posixpath.realpath(folder), name)
