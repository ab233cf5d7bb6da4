"""The guest kernel: `config` (fragments), `build` (source to vmlinux), `attribution` and `report` (cost)."""
