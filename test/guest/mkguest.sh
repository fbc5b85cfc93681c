#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Builds the small guest that the guest tests and scripts/demo.sh boot: a Debian cloud
# kernel and an initramfs with busybox, fio, mkfs.ext4, mkfs.xfs and friends.
#
#   mkguest.sh            prints two lines: the path of the kernel, the path of the initramfs
#   mkguest.sh --clean    removes what it built
#
# The kernel comes from a Debian package that is downloaded and unpacked, never installed.
# The tools are this host's own binaries with the libraries they need. Everything is kept
# in $BUILD_ROOT (default <repo>/build/guest) and used again until this script, the guest's
# init or one of the tools changes. KVER=6.1.0-NN-cloud-amd64 asks for one kernel.
#
# Exit status: 0 built or up to date; 77 it cannot be built here, the reason is the last
# line on stderr ("skip: ..."); 1 anything else.

set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${BUILD_ROOT:-$root/build/guest}
meta=linux-image-cloud-amd64

# With what they depend on, unless built into the kernel.
modules="virtio_pci virtio_console virtio_blk crc32c_generic ext4 xfs"
tools="flock fio mkfs.ext4 e2fsck mkfs.xfs xfs_repair fstrim blkdiscard lsblk blockdev"

say() { echo "mkguest: $*" >&2; }
skip() { echo "skip: guest: $*" >&2; exit 77; }

if [ "${1:-}" = --clean ]; then
	rm -rf "$out"
	exit 0
elif [ $# -gt 0 ]; then
	sed -n '3,16s/^# \{0,1\}//p' "$0"
	exit 1
fi

[ "$(uname -m)" = x86_64 ] || skip "needs an x86_64 host, this one is $(uname -m)"

# busybox has to be the static one, it is the guest's only shell.
busybox=
for b in /bin/busybox /usr/bin/busybox /usr/lib/busybox/busybox-static; do
	if [ -x $b ] && ! ldd $b >/dev/null 2>&1; then
		busybox=$b
		break
	fi
done
[ -n "$busybox" ] || skip "no static busybox: apt-get install busybox-static"
for t in $tools; do
	command -v "$t" >/dev/null ||
		skip "no $t: apt-get install fio e2fsprogs xfsprogs util-linux"
done

mkdir -p "$out"
# Two suites may start at once: one builds, the other waits and finds it up to date.
exec 9>"$out/.lock"
flock 9

# ---- the kernel -------------------------------------------------------------------------

kernel_package() {
	if [ -n "${KVER:-}" ]; then
		echo "linux-image-$KVER"
		return
	fi
	apt-cache show $meta 2>/dev/null |
		sed -n 's/^Depends: \(linux-image-[0-9.-]*-cloud-amd64\).*/\1/p' | head -1
}

fetch_kernel() {
	local pkg tmp
	command -v apt-get >/dev/null || skip "no apt-get here to fetch a kernel with"
	tmp=$(mktemp -d "$out/fetch.XXXXXX")
	# apt drops its rights to _apt for the download
	chmod 755 "$tmp"
	pkg=$(kernel_package)
	if [ -z "$pkg" ] || ! (cd "$tmp" && apt-get -q download "$pkg") >"$out/apt.log" 2>&1; then
		# The lists are missing, or older than what the mirror still has.
		if ! apt-get -q update >"$out/apt.log" 2>&1; then
			rm -rf "$tmp"
			skip "apt-get update failed (no network, or not root): $(tail -1 "$out/apt.log")"
		fi
		pkg=$(kernel_package)
		if [ -z "$pkg" ]; then
			rm -rf "$tmp"
			skip "apt knows no package $meta"
		fi
		if ! (cd "$tmp" && apt-get -q download "$pkg") >"$out/apt.log" 2>&1; then
			rm -rf "$tmp"
			skip "cannot download $pkg: $(tail -1 "$out/apt.log")"
		fi
	fi
	say "unpacking $pkg"
	dpkg -x "$tmp"/linux-image-*.deb "$tmp/root"
	rm -rf "$out/kernel"
	mkdir "$out/kernel"
	mv "$tmp"/root/boot/vmlinuz-* "$out/kernel/vmlinuz"
	mkdir "$out/kernel/modules"
	depmod_names "$tmp"/root/lib/modules/* |
		while read -r ko; do
			cp "$ko" "$out/kernel/modules/"
			basename "$ko"
		done >"$out/kernel/modules/order"
	rm -rf "$tmp"
	echo "$pkg $modules" >"$out/kernel/package"
}

# The .ko files to insmod from tree $1, one a line and in order: each after what it depends
# on. The package has no modules.dep (its postinst makes it), so ask the modules themselves.
depmod_names() {
	local tree=$1 seen=" "
	visit() {
		local name=$1 path dep
		case $seen in *" $name "*) return ;; esac
		seen="$seen$name "
		path=$(find "$tree" -name "$name.ko" -o -name "${name//_/-}.ko" | head -1)
		# built into the kernel
		[ -n "$path" ] || return 0
		for dep in $(strings_of "$path" depends | tr , ' ') $(soft_deps "$path"); do
			visit "$dep"
		done
		echo "$path"
	}
	local m
	for m in $modules; do
		visit "$m"
	done
}

# Field $2 of the module's .modinfo section: NUL-terminated "key=value" strings.
strings_of() { tr '\0' '\n' <"$1" | sed -n "s/^$2=//p" | head -1; }
soft_deps() { strings_of "$1" softdep | sed -n 's/^pre: *//p' | grep -v crypto- || true; }

have=$(cat "$out/kernel/package" 2>/dev/null || true)
case $have in
"linux-image-${KVER:-}"*" $modules") ;;
*) fetch_kernel ;;
esac

# ---- the initramfs ----------------------------------------------------------------------

stamp=$(
	{
		cat "$out/kernel/package" "$0" "$here/init"
		for t in $tools; do stat -L -c '%n %s %Y' "$(command -v "$t")"; done
		stat -L -c '%n %s %Y' "$busybox"
	} | sha256sum
)

copy_libs() {
	ldd "$1" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (0x.*/\1/p' |
		while read -r lib; do
			[ -e "$2$lib" ] || install -D -m 755 "$lib" "$2$lib"
		done
}

build_initramfs() {
	local dir=$out/initramfs.dir t path
	rm -rf "$dir" "$out/initramfs.cpio"
	mkdir -p "$dir"/{bin,sbin,usr/bin,usr/sbin,etc,dev,proc,sys,tmp,run,mnt,lib/modules}
	install -m 755 "$busybox" "$dir/bin/busybox"
	for t in $("$busybox" --list); do
		[ "$t" = busybox ] || ln -s /bin/busybox "$dir/bin/$t"
	done
	for t in $tools; do
		path=$(readlink -f "$(command -v "$t")")
		# under its own name in /sbin, which stands before busybox's namesakes in PATH
		install -m 755 "$path" "$dir/sbin/$t"
		copy_libs "$path" "$dir"
	done
	ln -s mkfs.ext4 "$dir/sbin/mke2fs"
	ln -s e2fsck "$dir/sbin/fsck.ext4"
	: >"$dir/etc/mtab"
	[ ! -e /etc/mke2fs.conf ] || cp /etc/mke2fs.conf "$dir/etc/"
	cp "$out"/kernel/modules/* "$dir/lib/modules/"
	install -m 755 "$here/init" "$dir/init"
	(cd "$dir" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$out/initramfs.tmp"
	mv "$out/initramfs.tmp" "$out/initramfs.cpio"
	rm -rf "$dir"
	echo "$stamp" >"$out/initramfs.stamp"
}

if [ ! -s "$out/initramfs.cpio" ] ||
	[ "$(cat "$out/initramfs.stamp" 2>/dev/null)" != "$stamp" ]; then
	say "building the initramfs"
	build_initramfs
fi

echo "$out/kernel/vmlinuz"
echo "$out/initramfs.cpio"
