#!/bin/busybox sh
# First program of the test host: makes the machine's files, under a layer of memory, its root file system.
#
# As PID 1 it ends in a panic when a step fails, and QEMU ends with that; the console then shows the step.
# Debian's busybox finds its own applets without links to it, once there is a /proc/self/exe.
set -e
/bin/busybox mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do
	insmod "$module"
done

# The machine's `/`. Not even we can write to it: it is read-only on the other side as well.
mount -t virtiofs -o ro machine /machine
mount -t tmpfs -o size=75% writable /writable
mkdir /writable/upper /writable/work
mount -t overlay -o lowerdir=/machine,upperdir=/writable/upper,workdir=/writable/work root /root

mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/strato-lab/share
mount -t virtiofs share /root/run/strato-lab/share
cp /bin/busybox /host.sh /root/run/strato-lab
mount --move /dev /root/dev
mount --move /proc /root/proc
# Not chroot: a process that is chrooted can make no user namespace.
exec /bin/busybox switch_root /root /run/strato-lab/busybox sh /run/strato-lab/host.sh
