"""`make build`: everything that runs, put together in the checkout's `build` folder."""

from . import debian, guest, launchers, layout, native, venv
from .cache import Cache
from .progress import run, say
from .testtools import link


def build(cache: Cache) -> None:
    """Build the runtime: packages, environment, native parts, kernel, image, launchers.

    Each part is skipped when its inputs did not change. Raises ToolError, RootfsError.
    """
    debian.install({**debian.BUILD_PACKAGES, **debian.RUN_PACKAGES})
    environment()
    # Each product is linked as soon as it is there; the slowest comes last.
    for name, path in native.build_host(cache).items():
        link(path, layout.LIBRARY / name)
    link(native.vhost_device_vsock(cache), layout.LIBRARY / "vhost-device-vsock")
    link(guest.guest_image(cache, native.build_agent(cache)), layout.LIBRARY / "initramfs.img")
    kernel(cache)
    launchers.write_launchers(layout.BIN, layout.VENV_PYTHON, (layout.CHECKOUT, venv.site_packages()))
    bytecode()
    say(f"Built: {layout.LIBRARY} and {layout.BIN}")


def environment() -> None:
    """The Python environment, with the Debian package that can make one where needed."""
    from .prerequisites import has_venv

    if not has_venv():
        debian.install(debian.VENV_PACKAGES)
    venv.ensure()


def bytecode() -> None:
    """Compile our packages: in its jail strato-vmm would compile them anew at every start."""
    packages = [str(layout.CHECKOUT / name) for name in ("shim", "vmm")]
    run([str(layout.VENV_PYTHON), "-m", "compileall", "-q", *packages], log=layout.LOGS / "bytecode.log")


def kernel(cache: Cache) -> None:
    """Build and link only the guest kernel."""
    entry = guest.kernel(cache)
    for name in ("vmlinux", "bzImage"):
        link(entry / name, layout.LIBRARY / name)
