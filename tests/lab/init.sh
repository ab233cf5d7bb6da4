#!/bin/busybox sh
# First program of the test host: makes the machine's files, under a layer of memory, its root file system.
#
# As PID 1 it ends in a panic when a step fails, and QEMU ends with that; the console then shows the step.
set -e
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
for module in /modules/*; do
	insmod "$module"
done

# The machine's `/`. Not even we can write to it: it is read-only on the other side as well.
mount -t virtiofs -o ro machine /machine
mount -t tmpfs -o size=75% writable /writable
mkdir /writable/upper /writable/work
mount -t overlay -o lowerdir=/machine,upperdir=/writable/upper,workdir=/writable/work root /root

mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/strato-lab/share /root/run/strato-lab/bin
mount -t virtiofs share /root/run/strato-lab/share
cp /bin/busybox /root/run/strato-lab/bin
cp /host.sh /root/run/strato-lab
mount --move /dev /root/dev
mount --move /proc /root/proc
# Not chroot: a process that is chrooted can make no user namespace.
exec switch_root /root /run/strato-lab/bin/busybox sh /run/strato-lab/host.sh
