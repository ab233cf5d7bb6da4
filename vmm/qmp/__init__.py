"""The control channel: QMP with the names and shapes of QEMU."""
