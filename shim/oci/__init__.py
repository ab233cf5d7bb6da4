"""OCI runtime specification: what of a host's config.json reaches the guest, and in which form.

Everything here but `bundle` is free of I/O. `coverage` holds the one table of every field, `spec` reads
config.json against it, `transform` (with `mounts` and `hooks`) turns the result into the guest's spec,
`resources` computes the VM's size.
"""
