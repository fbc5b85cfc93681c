#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# One command from a fresh Debian 12 to a guest that does verified I/O on our target:
#
#   sudo ./scripts/demo.sh
#
# Installs packages, builds, reserves huge pages, starts the target in a private directory
# with a disk in a file, boots a guest whose memory is huge pages shared with the target, and
# has it check the disk with fio and a file system. Every command is shown as typed. At the
# end everything it started is gone; the packages, build/ and nothing else stay.
#
# Exit status: 0 if all passed, 1 if something failed.

set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

disk_mib=512
guest_mib=512
huge_mib=1024
dir=
target=
guest=
pages_before=
unmount=
step=0
results=()
pages=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

usage() { sed -n '3,14s/^# \{0,1\}//p' "$0"; }

title() {
	step=$((step + 1))
	printf '\n== %d. %s\n' "$step" "$*"
	current=$*
	began=$SECONDS
}

# Shows a command as one would type it, then runs it.
type_and_run() {
	printf '  $ %s\n' "$*"
	"$@" 2>&1 | sed 's/^/    /'
}

ok() { results+=("PASS  $current ($((SECONDS - began)) s)"); }

cleanup() {
	local status=$1 pid
	trap - EXIT INT TERM
	set +e
	[ "$status" -eq 0 ] || results+=("FAIL  ${current:-start}")
	if [ "$status" -ne 0 ] && [ -n "$dir" ] && [ -s "$dir/vhost.log" ]; then
		printf '\n-- the last lines of the target'"'"'s log\n'
		tail -n 20 "$dir/vhost.log" | sed 's/^/    /'
	fi
	for pid in $guest $target; do
		kill "$pid" 2>/dev/null
		for _ in $(seq 50); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	[ -z "$dir" ] || rm -rf "$dir"
	[ -z "$unmount" ] || umount /dev/hugepages
	if [ -n "$pages_before" ] && [ "$(cat $pages)" != "$pages_before" ]; then
		echo "$pages_before" >$pages
	fi
	printf '\n== Summary\n'
	printf '  %s\n' "${results[@]}"
	if [ "$status" -eq 0 ]; then
		printf '\nPASS: a QEMU guest did verified I/O through build/bin/vhost (%d s in all)\n' \
			"$SECONDS"
		exit 0
	fi
	printf '\nFAIL: see above\n'
	exit 1
}

rpc() { type_and_run ./scripts/rpc.py -s "$dir/rpc.sock" "$@"; }

if [ $# -gt 0 ]; then
	usage
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "demo.sh: needs root for packages and huge pages: sudo $0" >&2
	exit 1
fi
trap 'cleanup $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title "Packages"
type_and_run ./scripts/pkgdep.sh
ok

title "Build"
type_and_run make -j"$(nproc)"
ok

title "Huge pages: $huge_mib MiB for the guest's memory"
pages_before=$(cat $pages)
grep -q ' hugetlbfs ' /proc/mounts || unmount=yes
type_and_run env HUGEMEM=$huge_mib ./scripts/setup.sh
ok

title "A small guest: Debian's cloud kernel, busybox and fio"
type_and_run ./test/guest/mkguest.sh
ok

title "The target, one polling reactor"
dir=$(mktemp -d /tmp/demo.XXXXXX)
printf '  $ ./build/bin/vhost -S %s -r %s/rpc.sock -m 0x1 &\n' "$dir" "$dir"
./build/bin/vhost -S "$dir" -r "$dir/rpc.sock" -m 0x1 >"$dir/vhost.log" 2>&1 &
target=$!
for _ in $(seq 100); do
	[ ! -S "$dir/rpc.sock" ] || break
	kill -0 $target 2>/dev/null || break
	sleep 0.1
done
rpc spdk_get_version
ok

title "A disk in a file, offered to one guest"
type_and_run truncate -s ${disk_mib}M "$dir/disk.img"
rpc bdev_uring_create "$dir/disk.img" disk0 512
rpc vhost_create_blk_controller --cpumask 0x1 vhost.0 disk0
rpc vhost_get_controllers
ok

title "The guest: list, verify with fio, make a file system, compare checksums"
fio='set -o pipefail; fio --name=verify --filename=/dev/vda --rw=randrw --bsrange=4k-256k'
fio+=' --size=128m --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1'
fio+=' | grep -E "verify:|READ:|WRITE:|err="'
python3 ./test/guest/guest.py --disk "$dir/vhost.0,num-queues=2" --size $guest_mib --smp 2 \
	'lsblk -o NAME,SIZE,LOG-SEC,RO /dev/vda; cat /sys/block/vda/serial; echo' \
	"$fio" \
	'mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && df -h /mnt' \
	'dd if=/dev/urandom of=/mnt/data bs=1M count=64 conv=fsync' \
	'sha256sum /mnt/data >/tmp/sum && cat /tmp/sum' \
	'umount /mnt && e2fsck -fn /dev/vda' \
	'mount /dev/vda /mnt && sha256sum -c /tmp/sum' \
	'rm /mnt/data && sync && fstrim -v /mnt && umount /mnt' &
guest=$!
wait $guest
guest=
ok

title "What the target counted, and what the file occupies after fstrim"
rpc bdev_get_iostat -b disk0
type_and_run du -h "$dir/disk.img"
ok

title "Shutdown"
rpc vhost_delete_controller vhost.0
rpc bdev_uring_delete disk0
printf '  $ kill %d\n' $target
kill $target
wait $target
target=
if [ -e "$dir/vhost.0" ] || [ -e "$dir/rpc.sock" ]; then
	echo "    a socket was left behind"
	exit 1
fi
ok
