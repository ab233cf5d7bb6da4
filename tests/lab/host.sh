# PID 1 of the test host, in its final root file system: mounts what a host has, gives signs of life, runs the
# command and carries its status out. What the harness has to know is printed with a mark.
#
# share/: `command` (a script), `modules` (a path), `kept` (names in /tmp that the command needs), `results/`;
# `status` is written here.
set -e
lab=/run/strato-lab
share=$lab/share
say() {
	echo "strato-lab: $*" >/dev/console
}

mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/hugepages
mount -t devpts -o ptmxmode=666,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t hugetlbfs hugetlbfs /dev/hugepages
# Opening them loads their modules.
mkdir -p /dev/net
mknod -m 666 /dev/net/tun c 10 200
mknod -m 660 /dev/loop-control c 10 237
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

# A tmpfs, because overlayfs takes no overlay as its upper layer, with what of the machine's /tmp is needed.
mkdir $lab/tmp
mount --bind /tmp $lab/tmp
mount -t tmpfs -o mode=1777,size=50% tmp /tmp
while read -r name; do
	mkdir "/tmp/$name"
	mount --bind "$lab/tmp/$name" "/tmp/$name"
done <$share/kept
umount $lab/tmp
mkdir -p /lib/modules
mount --bind "$(cat $share/modules)" /lib/modules
hostname strato-lab
ip link set lo up

# Some VM is alive as long as the host, with a processor and its APIC, and without. The kernel patches the code of its
# scheduler for the first VM and after the last one; the emulator's other processors may go on with the code between
# (QEMU before 8.1 translates a page without holding it), which is a breakpoint, for ever. One host in some hundred VMs.
python3 -IS -c '
import fcntl, os, signal
CREATE_VM, CREATE_VCPU, CREATE_IRQCHIP = 0xAE01, 0xAE41, 0xAE60
kvm = os.open("/dev/kvm", os.O_RDWR)
machines = [fcntl.ioctl(kvm, CREATE_VM, 0) for _ in range(2)]
fcntl.ioctl(machines[0], CREATE_IRQCHIP, 0)
processors = [fcntl.ioctl(machine, CREATE_VCPU, 0) for machine in machines]
signal.pause()
' &

# Signs of life: each processor in turn has to start a program and to print.
cpus=$(nproc)
cpu=0
while [ $cpu -lt "$cpus" ]; do
	taskset "$(printf %x $((1 << cpu)))" sh -c "while sleep 2; do echo strato-lab: beat $cpu; done" >/dev/console &
	cpu=$((cpu + 1))
done

# Through a pipe, because the port can be opened once only and /dev/stdout opens it again.
mkfifo $lab/output
cat $lab/output >/dev/vport0p1 &
printer=$!
say "up $(cut -d ' ' -f 1 /proc/uptime)"
set +e
/bin/sh $share/command </dev/null >$lab/output 2>&1
status=$?
say "ended $status $(cut -d ' ' -f 1 /proc/uptime)"
# What the command left behind may hold its output open.
(
	sleep 5
	kill $printer
) &
wait $printer
echo $status >$share/status.new
mv $share/status.new $share/status
reboot -f
