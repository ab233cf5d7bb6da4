"""What runs inside a sandbox before any container does: the guest kernel and the guest image.

`rootfs.kernel` turns configuration fragments and Debian's kernel source into `vmlinux` and `bzImage`;
`rootfs.image` turns the agent into an initramfs. Both are called by `tools.guest`, which keeps their
products in the cache. Standard library only, so that they run before any environment exists.
"""
