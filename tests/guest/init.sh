#!/bin/busybox sh
# The guest: its first and only program, which keeps files on the disk and says what it made durable.
#
# Orders come over the second serial line, and so do the answers; tests/guest/machine.py has the list.
# The console, the first serial line, gets what the kernel and the programs complain about.
#
# On the disk:
#   files/N    random bytes
#   slots      16 pages; page N mod 16 holds the number N, again and again, and is overwritten in place
#   journal    what was said, a line of 64 bytes each, so that no line lies in two blocks:
#                has N MD5   files/N with that sum is durable, and so is page N mod 16
#                gone N      files/N is about to be removed
# A line is durable before it is said, and what it promises before it is written.

readonly KEPT=24 SLOTS=16

/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
stty raw -echo </dev/ttyS1
exec </dev/ttyS1 >/dev/ttyS1

fail() { echo "error $1: $(head -n 1 /tmp/complaint)"; }

# save WHAT DD-ARGUMENTS...: durably, or an error is said.
save() {
    what=$1
    shift
    dd bs=64k "$@" 2>/tmp/complaint && return
    fail "$what"
    return 1
}

note() {
    printf '%-63s\n' "$*" >/tmp/line
    save journal if=/tmp/line of=journal oflag=append conv=notrunc,fsync && echo "$*"
}

step() {
    number=$((number + 1))
    dd if=/dev/urandom of=/tmp/content bs=4k count=$((number % 7 * 3 + 1)) 2>/dev/null
    sum=$(md5sum </tmp/content)
    save "files/$number" if=/tmp/content of="files/$number" conv=fsync || return
    yes "$(printf '%015d' $number)" | head -c 4096 >/tmp/page
    save slots if=/tmp/page of=slots bs=4k seek=$((number % SLOTS)) conv=notrunc,fsync || return
    note "has $number ${sum%% *}" || return
    if [ $number -gt $KEPT ]; then
        note "gone $((number - KEPT))" && rm "files/$((number - KEPT))" 2>/tmp/complaint || { fail removing; return 1; }
    fi
}

write_on() {
    number=$(awk '$1 == "has" { number = $2 } END { print number + 0 }' journal)
    while ! [ -e /tmp/stop ]; do step || return; done
}

# Reads everything that was promised from the disk, not from memory.
verify() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    grep -q '^/dev/vda /disk ext4 rw' /proc/mounts || { echo "error the file system is read-only"; return; }
    awk '$1 == "has" { sums[$2] = $3 } $1 == "gone" { delete sums[$2] }
        END { for (number in sums) print sums[number] "  files/" number }' journal >/tmp/sums
    if md5sum -c /tmp/sums 2>&1 | grep -v ': OK$' >/tmp/complaint; then
        fail verify
    else
        echo "verified $(wc -l </tmp/sums) $(wc -l <journal)"
    fi
}

echo ready
while read -r order; do
    case $order in
        format)
            /e2fsprogs/mke2fs -q -t ext4 -b 4096 /dev/vda >/tmp/complaint 2>&1 && echo formatted || fail format
            ;;
        mount)
            mkdir -p /disk
            # With discard, the kernel trims what was removed.
            if mount -t ext4 -o discard /dev/vda /disk 2>/tmp/complaint; then
                cd /disk && mkdir -p files && touch journal && echo mounted
            else
                fail mount
            fi
            ;;
        go)
            rm -f /tmp/stop
            write_on &
            echo going
            ;;
        stop)
            touch /tmp/stop
            wait
            echo idle
            ;;
        verify) verify ;;
        off)
            cd /
            umount /disk 2>/tmp/complaint && echo off || fail umount
            poweroff -f
            ;;
        *) echo "error no such order: $order" ;;
    esac
done
