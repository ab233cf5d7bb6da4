"""Strato's containerd shim: one process per sandbox, between containerd and a microVM.

Nothing is imported here: the `start` and `delete` verbs live from a short import list.
"""

__version__ = "0.1.0"
