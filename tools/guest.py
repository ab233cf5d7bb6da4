"""Kernel and guest image as cache entries. The builders themselves are in `rootfs`."""

import shutil
from pathlib import Path

from rootfs import image
from rootfs.kernel import build as kernel_build
from rootfs.kernel.config import load_fragments

from . import debian
from .cache import Cache, digest_files
from .progress import say, step

KERNEL_SOURCE_PACKAGE = "linux-source-6.12"


def kernel(cache: Cache, fragments: Path = kernel_build.FRAGMENTS) -> Path:
    """The cache entry of the guest kernel, built when fragments, source or compiler changed.

    Raises RootfsError, ToolError.
    """
    return debian.retry_with_fresh_lists(
        lambda: _kernel(cache, debian.candidate(KERNEL_SOURCE_PACKAGE), fragments)
    )


def _kernel(cache: Cache, source: debian.Download, fragments: Path) -> Path:
    def build(output: Path) -> None:
        work = output / "work"
        archive = kernel_source(cache, source)
        facts = kernel_build.build_kernel(archive, load_fragments(fragments), work, output)
        shutil.rmtree(work)
        say(
            f"Kernel {facts.release}: {facts.enabled_symbols} built-in options, "
            f"vmlinux {facts.vmlinux_bytes / 2**20:.1f} MiB, bzImage {facts.bzimage_bytes / 2**20:.1f} MiB"
        )

    return cache.entry("kernel", kernel_inputs(source, fragments), build)


def kernel_inputs(source: debian.Download, fragments: Path) -> dict[str, str]:
    """What a kernel is made of: fragments, files of our own, source version, builder, compiler."""
    return {
        "fragments": digest_files(list(fragments.glob("*.config")), fragments),
        "sources": digest_files(list(kernel_build.SOURCES.rglob("*.c")), kernel_build.SOURCES),
        "source": f"{source.package} {source.version}",
        "builder": str(kernel_build.BUILDER_VERSION),
        "compiler": kernel_build.compiler_version(),
    }


def kernel_source(cache: Cache, source: debian.Download) -> Path:
    """The kernel's source archive out of Debian's package, kept in the cache."""

    def build(output: Path) -> None:
        package = debian.fetch(source, output)
        debian.unpack(package, output / "package")
        archive = next((output / "package" / "usr" / "src").glob("linux-source-*.tar.xz"))
        archive.rename(output / archive.name)
        shutil.rmtree(output / "package")
        package.unlink()

    entry = cache.entry("kernel-source", {"package": source.package, "version": source.version}, build)
    return next(entry.glob("linux-source-*.tar.xz"))


def guest_image(cache: Cache, agent: Path) -> Path:
    """The initramfs that holds this agent, as a file in the cache. Raises ImageError."""

    def build(output: Path) -> None:
        with step("Guest image: write initramfs"):
            size = image.write_image(agent, output / "initramfs.img")
        say(
            f"Guest image: {size / 2**20:.1f} MiB unpacked, of {image.MAX_UNPACKED_BYTES / 2**20:.0f} allowed"
        )

    inputs = {"agent": digest_files([agent], agent.parent), "builder": str(image.BUILDER_VERSION)}
    return cache.entry("guest-image", inputs, build) / "initramfs.img"
