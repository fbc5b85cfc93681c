#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs what building and testing needs on Debian 12. "pkgdep.sh help" tells the rest. Asks dpkg
# first and leaves apt alone when nothing is missing, so that running it again costs nothing.

set -eu
export LC_ALL=C

# Compiler and libraries: enough for "make" and "make install".
build=(
	build-essential pkg-config libnuma-dev libjson-c-dev liburing-dev librbd-dev librados-dev
)

# The suites: unit tests, sanitizers and fuzzing (clang), lint, guests (QEMU, what their disk
# images and initramfs are made with), the benchmarks' yardsticks (fio, QEMU's rbd), what fetches
# the source of fio for "make fio" (dpkg-dev), a systemd to run the unit, a Ceph cluster.
test=(
	libcmocka-dev clang clang-format clang-tidy cppcheck libclang-rt-14-dev shellcheck valgrind gdb
	qemu-system-x86 qemu-utils busybox-static cpio xz-utils zstd kmod e2fsprogs xfsprogs util-linux
	systemd fio dpkg-dev python3 iproute2 procps ca-certificates ceph-mon ceph-osd ceph-common
	python3-rados python3-rbd qemu-block-extra
)

usage() {
	cat <<-'TEXT'
	Usage: scripts/pkgdep.sh [build|test|all|list|help]

	build   what "make" needs
	test    what "make check", "make bench" and "make lint" need, and the source of fio
	all     both (the default)
	list    print the packages of both that are missing here, install nothing
	help    this text

	Needs root, except for list. For Debian 12 (bookworm).
	TEXT
}

missing() {
	local package
	for package in "$@"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null) == installed ]] ||
			echo "$package"
	done
}

install_packages() {
	local -a need
	mapfile -t need < <(missing "$@")
	if [[ ${#need[@]} -eq 0 ]]; then
		echo "pkgdep.sh: all $# packages are installed"
		return
	fi
	echo "pkgdep.sh: installing ${need[*]}"
	if [[ $EUID -ne 0 ]]; then
		echo "pkgdep.sh: installing packages needs root; run it with sudo" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	apt-get install -q -y --no-install-recommends "${need[@]}"
}

# "make fio" would do it as well; here, so that nothing after this needs a network.
fetch_fio() {
	(cd "$(dirname "$0")/.." && test/fio/fetch.sh "${BUILD:-build}/fio/source") ||
		echo "pkgdep.sh: without the source of fio there is no \"make fio\"; all else works" >&2
}

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
	echo "pkgdep.sh: this is no Debian; install by hand what this script lists" >&2
	exit 1
fi

case ${1:-all} in
build) install_packages "${build[@]}" ;;
test)
	install_packages "${test[@]}"
	fetch_fio
	;;
all)
	install_packages "${build[@]}" "${test[@]}"
	fetch_fio
	;;
list) missing "${build[@]}" "${test[@]}" ;;
help | -h | --help) usage ;;
*)
	usage >&2
	exit 2
	;;
esac
