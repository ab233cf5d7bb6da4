"""The guest kernel: `config` (fragments, pure), `build` (source to vmlinux), `attribution` and `report` (cost)."""
