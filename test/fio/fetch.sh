#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Puts the source of the installed fio into DIR and configures it there: our engine includes its
# headers. The package's own version, since fio's structures change from one to the next.
#
# Usage: fetch.sh DIR          "make fio" and pkgdep.sh call it so, with build/fio/source
#
# Does nothing when DIR holds that version already. The package lists with the sources that this
# needs ("deb-src") are kept beside DIR; the machine's own apt configuration stays as it is.
# Without a network: unpack the source elsewhere (apt-get source fio) and "make fio FIO_SRC=DIR".

set -eu
export LC_ALL=C
dir=${1:?usage: fetch.sh DIR}
work=$(dirname "$dir")/apt

fail() {
	echo "fio: $1" >&2
	exit 1
}

# The repository that the installed package came from, as "URI SUITE/COMPONENT".
origin() {
	local line
	line=$(apt-cache madison fio 2> /dev/null |
		awk -F ' *[|] *' -v v="$1" '$2 == v && $3 ~ / Packages$/ { print $3; exit }')
	if [[ -n $line ]]; then
		awk '{ print $1, $2 }' <<< "$line"
	else
		# shellcheck source=/dev/null
		(. /etc/os-release && echo "http://deb.debian.org/debian $VERSION_CODENAME/main")
	fi
}

fetch() {
	local package=$1 uri suite key=/usr/share/keyrings/debian-archive-keyring.gpg options=
	mkdir -p "$work/lists/partial"
	read -r uri suite < <(origin "$(dpkg-query -W -f '${Version}' fio)")
	if [[ -e $key ]]; then options="[signed-by=$key] "; fi
	echo "deb-src $options$uri ${suite%%/*} ${suite#*/}" > "$work/sources.list"
	local -a apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
		-o "Dir::State::lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
		-o APT::Sandbox::User=root)
	"${apt[@]}" update && (cd "$work" && "${apt[@]}" source --only-source "fio=$package")
}

command -v fio > /dev/null || fail "fio is not installed: scripts/pkgdep.sh test"
version=$(fio --version)
if [[ $(cat "$dir/spindle-version" 2> /dev/null) == "$version" ]]; then exit; fi
# Ours, of a fio that was installed before.
if [[ -e $dir/spindle-version && -d $work ]]; then rm -rf "$dir"; fi
if [[ ! -e $dir/fio.h ]]; then
	command -v dpkg-source > /dev/null || fail "dpkg-dev is missing: scripts/pkgdep.sh test"
	package=$(dpkg-query -W -f '${source:Version}' fio 2> /dev/null) ||
		fail "$(command -v fio) is of no Debian package: unpack its source and say make fio FIO_SRC=DIR"
	mkdir -p "$work"
	work=$(cd "$work" && pwd)
	log=$work/fetch.log
	echo "fio: fetching the source of fio $package"
	rm -rf "$work"/fio-*/
	if ! fetch "$package" > "$log" 2>&1; then
		tail -n 5 "$log" >&2
		fail "no source (is there a network? see $log); without one: make fio FIO_SRC=DIR"
	fi
	mv "$work"/fio-*/ "$dir"
fi
[[ $(sed -n 's/^DEF_VER=//p' "$dir/FIO-VERSION-GEN") == "$version" ]] ||
	fail "$dir is not the source of $version, which is installed"
echo "fio: configuring $version"
(cd "$dir" && ./configure --disable-native > configure.log 2>&1) ||
	fail "its configure failed: $dir/configure.log"
echo "$version" > "$dir/spindle-version"
