"""Errors of the guest builder.

RootfsError
├── FragmentError         a fragment cannot be read, or two fragments disagree
├── SymbolError           the kernel's own configuration did not take what the fragments ask for
├── KernelBuildError      the kernel's build system failed
├── ImageError            the guest image cannot be written
└── BootError             a boot that was to be measured failed
"""


class RootfsError(Exception):
    """Base of every error that the guest builder raises."""


class FragmentError(RootfsError):
    """A configuration fragment is malformed, or two fragments contradict each other."""


class SymbolError(RootfsError):
    """Wanted symbols vanished or changed when the kernel completed the configuration."""


class KernelBuildError(RootfsError):
    """A command of the kernel build ended with an error."""


class ImageError(RootfsError):
    """The guest image cannot be made, or would be larger than allowed."""


class BootError(RootfsError):
    """A measured boot did not come to its end."""
