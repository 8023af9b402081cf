#!/bin/sh
# Boots one host: systemd as PID 1 in namespaces of its own, on an overlay of this machine's root.
#
# usage: boot.sh FOLDER GROUP NAME        (its network namespace is the one it is started in)
#
# FOLDER has: layers/upper, layers/work (the overlay's), root (where it is mounted), disk (what is no overlay at the host: /srv and
# /var/lib/vmreplica), cgroup (empty), boot-id, shared (links to folders here; beside each a file that says where it is
# there). GROUP: the name of its cgroup.
# Runs itself once more inside the namespaces. Nothing here writes outside of FOLDER.
set -eu
folder=$1 group=$2 name=$3 stage=${4:-outside}

if [ "$stage" = outside ]; then
    # Stage 1, in a mount namespace: a cgroup of the host's own, which its cgroup namespace will see as the root.
    mount --make-rprivate /
    mount -t cgroup2 cgroup2 "$folder/cgroup"
    mkdir -p "$folder/cgroup/$group"
    echo $$ >"$folder/cgroup/$group/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup "$0" "$folder" "$group" "$name" inside
fi

# Stage 2, PID 1 of the namespaces.
mount --make-rprivate /
umount "$folder/cgroup"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/layers/upper,workdir=$folder/layers/work" "$root"
for own in srv var/lib/vmreplica; do
    mkdir -p "$root/$own" "$folder/disk/$own"
    mount --bind "$folder/disk/$own" "$root/$own"
done
for empty in run tmp home; do
    mkdir -p "$root/$empty"
    mount -t tmpfs -o mode=755 tmpfs "$root/$empty"
done
chmod 1777 "$root/tmp"

# Devices: none of the machine's disks.
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
for link in fd:self/fd stdin:self/fd/0 stdout:self/fd/1 stderr:self/fd/2; do
    ln -s "/proc/${link#*:}" "$root/dev/${link%%:*}"
done

# The kernel is the machine's: its settings can be read and not changed.
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$folder/boot-id" "$root/proc/sys/kernel/random/boot_id"
mount -o remount,bind,ro "$root/proc/sys/kernel/random/boot_id"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for there in "$folder"/shared/*.there; do
    [ -e "$there" ] || continue
    target=$root$(cat "$there")
    mkdir -p "$target"
    mount --bind "$(readlink -f "${there%.there}")" "$target"
    mount -o remount,bind,ro "$target"
done

hostname "$name"
cd "$root"
mkdir -p run/outside
pivot_root . run/outside
umount -l /run/outside
rmdir /run/outside
# As at a boot without a container around it: what systemd mounts for a unit (credentials, say) is there for all.
mount --make-rshared /
cd /
exec env -i container=vmreplica-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --unit=multi-user.target --log-target=journal-or-kmsg --show-status=false </dev/null
