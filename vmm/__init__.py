"""Strato's virtual machine: configuration, boards, engines and the strato-vmm process.

Nothing in this package imports ``shim``. The shim in turn uses only ``vmm.config``, ``vmm.errors``,
``vmm.paths``, ``vmm.qmp.client`` and the objects of ``vmm.sys``. Importing the package does no work.
"""

VERSION = "0.1.0"
