#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Reserves huge pages for the target and for its VMs, and mounts hugetlbfs where it is missing.
# "setup.sh help" tells the rest.
#
# Nothing here ever lowers the number of pages: "config" only raises it to what was asked, and
# "reset" gives back what is free. The kernel hands out fewer pages than asked without an error,
# so what counts is what is read back.

set -u
export LC_ALL=C
# These two are only for trying the script out on an imitation of the kernel's files.
sys=${SETUP_SYSFS:-/sys}
proc=${SETUP_PROCFS:-/proc}
mount_point=/dev/hugepages
status=0

usage() {
	cat <<-'TEXT'
	Usage: [NAME=value ...] scripts/setup.sh [config|status|reset|help]

	config   (the default) reserve huge pages, mount hugetlbfs at /dev/hugepages if it is not
	         mounted anywhere; exits with 1 when it got less than asked
	status   show the huge pages of each NUMA node, hugetlbfs mounts, free memory
	reset    give back the reserved pages that nobody uses (of size HUGEPGSZ, or of all sizes)
	help     this text

	Variables of config:
	HUGEMEM   MiB to reserve; default 2048. Rounded up to whole pages.
	HUGEPGSZ  page size in KiB: 2048 (the default) or 1048576 for 1 GiB pages
	HUGENODE  where. One node: HUGENODE=1, all of HUGEMEM there. Several: HUGENODE=0,1, HUGEMEM
	          spread evenly over them. Pages by node, HUGEMEM then being ignored:
	          HUGENODE='nodes_hp[0]=512,nodes_hp[1]=256'. Default: the kernel spreads them.

	Examples:
	  HUGEMEM=4096 ./scripts/setup.sh
	  HUGEMEM=8192 HUGEPGSZ=1048576 HUGENODE=1 ./scripts/setup.sh

	Pages that are already reserved count; more than asked is left as it is.
	TEXT
}

warn() {
	echo "setup.sh: $*" >&2
}

die() {
	warn "$@"
	exit 1
}

is_number() {
	[[ $1 =~ ^[0-9]{1,12}$ ]]
}

# First word of a file, 0 when it cannot be read.
value() {
	local v=0
	[[ -r $1 ]] && read -r v < "$1"
	echo "${v:-0}"
}

# The NUMA nodes that have memory; "-" stands for a kernel without NUMA.
nodes() {
	local d list=
	for d in "$sys"/devices/system/node/node[0-9]*; do
		[[ -d $d/hugepages ]] && list+="${d##*node}"$'\n'
	done
	if [[ -n $list ]]; then
		sort -n <<< "${list%$'\n'}"
	else
		echo -
	fi
}

# Page sizes of this kernel, in KiB.
sizes() {
	local d
	for d in "$sys"/kernel/mm/hugepages/hugepages-*kB; do
		[[ -d $d ]] || continue
		d=${d##*hugepages-}
		echo "${d%kB}"
	done | sort -n
}

# pages_dir NODE SIZE: the directory with nr_hugepages and free_hugepages; "-" is all nodes.
pages_dir() {
	if [[ $1 == - ]]; then
		echo "$sys/kernel/mm/hugepages/hugepages-$2kB"
	else
		echo "$sys/devices/system/node/node$1/hugepages/hugepages-$2kB"
	fi
}

# Free memory in MiB of a node, or of the machine for "-".
free_memory() {
	local file=$proc/meminfo
	[[ $1 == - ]] || file=$sys/devices/system/node/node$1/meminfo
	awk '/MemFree:/ { for (i = 1; i < NF; i++) if ($i == "MemFree:") print int($(i + 1) / 1024) }' \
		"$file" 2> /dev/null || echo 0
}

# Memory that is free in blocks of at least one huge page, in MiB: what is not fragmented.
unfragmented_memory() {
	local node=$1 size=$2 page_kib
	page_kib=$(($(getconf PAGESIZE) / 1024))
	awk -v node="$node" -v size="$size" -v page="$page_kib" '
		node == "-" || $2 == node "," {
			for (i = 5; i <= NF; i++) {
				block = page * 2 ^ (i - 5)
				if (block >= size || i == NF)
					kib += $i * block
			}
		}
		END { print int(kib / 1024) }' "$proc/buddyinfo" 2> /dev/null || echo 0
}

mounts() {
	awk '$3 == "hugetlbfs" { print $2, $4 }' "$proc/mounts" 2> /dev/null
}

show() {
	local node size dir name
	printf '%-6s %10s %8s %8s %12s\n' node pagesize total free "free memory"
	for node in $(nodes); do
		for size in $(sizes); do
			dir=$(pages_dir "$node" "$size")
			[[ -d $dir ]] || continue
			name=$node
			[[ $node == - ]] && name=all
			printf '%-6s %10s %8s %8s %12s\n' "$name" "$((size / 1024)) MiB" \
				"$(value "$dir/nr_hugepages")" "$(value "$dir/free_hugepages")" \
				"$(free_memory "$node") MiB"
		done
	done
}

show_mounts() {
	local list
	list=$(mounts)
	if [[ -n $list ]]; then
		echo "hugetlbfs is mounted at:"
		echo "  ${list//$'\n'/$'\n'  }"
	else
		echo "hugetlbfs is not mounted"
	fi
}

need_root() {
	[[ $EUID -eq 0 ]] || die "$1 needs root; run it with sudo"
}

need_hugetlb() {
	[[ -d $sys/kernel/mm/hugepages ]] ||
		die "this kernel has no huge pages (no $sys/kernel/mm/hugepages)"
}

check_size() {
	local all
	is_number "$1" || die "HUGEPGSZ=$1 is not a page size in KiB"
	[[ -d $sys/kernel/mm/hugepages/hugepages-$1kB ]] && return
	all=$(sizes | tr '\n' ' ')
	die "page size $1 KiB (HUGEPGSZ) is not supported by this kernel and CPU; it has: ${all:-none}"
}

mount_hugetlbfs() {
	local size=$1 at=$mount_point wanted
	if [[ -n $(mounts) ]]; then
		# A mount without pagesize= has the default size; only another size needs its own.
		wanted="pagesize=$((size / 1024))M"
		[[ $size -ge 1048576 ]] && wanted="pagesize=$((size / 1048576))G"
		if mounts | grep -q "$wanted" || [[ $size == "$(default_size)" ]]; then
			return
		fi
		at=$mount_point-$((size / 1024))M
	fi
	if mounts | grep -q "^$at "; then
		return
	fi
	mkdir -p "$at" || { warn "cannot create $at"; status=1; return; }
	if mount -t hugetlbfs -o "pagesize=${size}K" nodev "$at"; then
		echo "mounted hugetlbfs with pages of $((size / 1024)) MiB at $at"
	else
		warn "could not mount hugetlbfs at $at; the target itself does not need it, QEMU with" \
			"memory-backend-file does"
		status=1
	fi
}

default_size() {
	awk '/^Hugepagesize:/ { print $2 }' "$proc/meminfo"
}

# raise NODE SIZE PAGES: at least that many pages on that node ("-": anywhere).
raise() {
	local node=$1 size=$2 want=$3 dir had got error place
	dir=$(pages_dir "$node" "$size")
	place="on node $node"
	[[ $node == - ]] && place=reserved
	if [[ ! -d $dir ]]; then
		warn "node $node does not exist or has no memory; nodes here: $(nodes | tr '\n' ' ')"
		status=1
		return
	fi
	had=$(value "$dir/nr_hugepages")
	if [[ $had -ge $want ]]; then
		echo "$had pages of $((size / 1024)) MiB $place already, $want asked: left as it is"
		return
	fi
	if ! error=$({ echo "$want" > "$dir/nr_hugepages"; } 2>&1); then
		warn "cannot write $dir/nr_hugepages: ${error##*: }"
	fi
	got=$(value "$dir/nr_hugepages")
	if [[ $got -lt $want ]]; then
		# Memory that is free but in small pieces can often be put together.
		{ echo 1 > "$proc/sys/vm/compact_memory"; } 2> /dev/null &&
			{ echo "$want" > "$dir/nr_hugepages"; } 2> /dev/null
		got=$(value "$dir/nr_hugepages")
	fi
	if [[ $got -lt $want ]]; then
		explain "$node" "$size" "$want" "$got"
		status=1
	else
		echo "$got pages of $((size / 1024)) MiB $place"
	fi
}

explain() {
	local node=$1 size=$2 want=$3 got=$4 free whole place
	free=$(free_memory "$node")
	whole=$(unfragmented_memory "$node" "$size")
	place="on node $node"
	[[ $node == - ]] && place="on this machine"
	warn "asked for $want pages of $((size / 1024)) MiB $place, got $got"
	if [[ $(((want - got) * size / 1024)) -gt $free ]]; then
		warn "$(((want - got) * size / 1024)) MiB more would be needed, $free MiB are free:" \
			"not enough memory"
	else
		warn "$free MiB are free, but about $whole MiB of it in pieces that large: memory is" \
			"fragmented. Free some (echo 3 > /proc/sys/vm/drop_caches), or reserve at boot:" \
			"hugepagesz=$((size / 1024))M hugepages=$want on the kernel's command line"
	fi
}

# "nodes_hp[0]=512,nodes_hp[1]=256" or "0=512,1=256"
reserve_list() {
	local size=$1 entry
	local -a entries
	IFS=, read -ra entries <<< "$2"
	for entry in "${entries[@]}"; do
		[[ $entry =~ ^(nodes_hp\[)?([0-9]{1,4})\]?=([0-9]{1,12})$ ]] ||
			die "HUGENODE: $entry is not nodes_hp[NODE]=PAGES"
		raise "${BASH_REMATCH[2]}" "$size" "$((10#${BASH_REMATCH[3]}))"
	done
}

config() {
	local mem=${HUGEMEM:-2048} size=${HUGEPGSZ:-2048} where=${HUGENODE:-} pages node i=0
	local -a list
	is_number "$mem" || die "HUGEMEM=$mem is not a number of MiB"
	mem=$((10#$mem))
	need_hugetlb
	check_size "$size"
	need_root "reserving huge pages"
	echo "before:"
	show
	echo
	pages=$(((mem * 1024 + size - 1) / size))
	if [[ -z $where ]]; then
		raise - "$size" "$pages"
	elif [[ $where == *=* ]]; then
		reserve_list "$size" "$where"
	else
		[[ $where =~ ^[0-9]{1,4}(,[0-9]{1,4})*$ ]] ||
			die "HUGENODE=$where is neither nodes (0 or 0,1) nor nodes_hp[NODE]=PAGES,..."
		IFS=, read -ra list <<< "$where"
		for node in "${list[@]}"; do
			# The first nodes take what does not divide evenly.
			raise "$((10#$node))" "$size" \
				$((pages / ${#list[@]} + (i < pages % ${#list[@]} ? 1 : 0)))
			i=$((i + 1))
		done
	fi
	mount_hugetlbfs "$size"
	echo
	echo "after:"
	show
	show_mounts
	return "$status"
}

# The kernel keeps pages in use when nr_hugepages is lowered, but as surplus that vanishes later;
# asking for exactly those in use leaves them alone.
reset() {
	local node size dir total free kept
	need_hugetlb
	[[ -z ${HUGEPGSZ:-} ]] || check_size "$HUGEPGSZ"
	need_root "giving huge pages back"
	echo "before:"
	show
	echo
	for size in ${HUGEPGSZ:-$(sizes)}; do
		for node in $(nodes); do
			dir=$(pages_dir "$node" "$size")
			[[ -d $dir ]] || continue
			total=$(value "$dir/nr_hugepages")
			free=$(value "$dir/free_hugepages")
			[[ $total -gt 0 ]] || continue
			# Pages that are free but promised to a mapping must stay as well.
			kept=$((total - free + $(reserved "$size")))
			[[ $kept -le $total ]] || kept=$total
			{ echo "$kept" > "$dir/nr_hugepages"; } 2> /dev/null ||
				{ warn "cannot write $dir/nr_hugepages"; status=1; }
			[[ $kept -eq 0 ]] ||
				echo "$kept pages of $((size / 1024)) MiB are in use and stay"
		done
	done
	echo "after:"
	show
	return "$status"
}

reserved() {
	value "$sys/kernel/mm/hugepages/hugepages-$1kB/resv_hugepages"
}

main() {
	[[ $# -le 1 ]] || { usage >&2; exit 2; }
	case ${1:-config} in
	config) config ;;
	status) need_hugetlb; show; show_mounts ;;
	reset) reset ;;
	help | -h | --help) usage ;;
	*) warn "unknown command $1"; usage >&2; exit 2 ;;
	esac
}

main "$@"
