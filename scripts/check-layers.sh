#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Checks that every folder includes only what stands on a lower floor, that internal headers stay
# at home, and that a foreign library is known to one folder only. Prints each line that breaks a
# rule and, last, "N passed, N failed, N skipped", N counting the files.
#
# Usage: check-layers.sh [DIR]     the repository, default the one that this script is in

set -eu
export LC_ALL=C
cd "${1:-$(dirname "$0")/..}"

# main.c stands above all; a file in the root has the name of the folder ".".
declare -A floor=([.]=6 [rpc]=5 [vhost]=4 [bdev]=3 [reactor]=2 [hugepages]=1)

# The headers that other folders may include; all of reactor/'s and hugepages/'s but *_internal.h.
declare -A public=([rpc]="rpc.h config.h takeover.h" [vhost]="vhost.h handover.h" [bdev]="bdev.h")

# Who may include a foreign header: "pattern|folders and files|why"
foreign=(
	'json-c/|rpc/|only rpc/ knows JSON'
	'json\.h|rpc/|only rpc/ knows JSON'
	'linux/(virtio|vhost)|vhost/|only vhost/ knows virtio'
	'(rbd|rados)/|bdev/bdev_rbd|only bdev/bdev_rbd* knows Ceph'
	'numa(if)?\.h|hugepages/|only hugepages/ places memory'
)

passed=0
failed=0

# broken FILE LINE HEADER WHY
broken() {
	echo "$1:$2: includes $3: $4"
	bad=1
}

check_own() {
	local file=$1 line=$2 header=$3 home=$4 to base=${3##*/}
	if [[ $header != */* ]]; then
		broken "$file" "$line" "\"$header\"" "name it from the root of the repository"
		return
	fi
	to=${header%%/*}
	if [[ ! -e $header ]]; then
		broken "$file" "$line" "\"$header\"" "no such file"
	elif [[ -z ${floor[$to]:-} ]]; then
		broken "$file" "$line" "\"$header\"" "$to/ has no floor; the product may not need it"
	elif [[ $to == "$home" ]]; then
		return
	elif [[ ${floor[$to]} -ge ${floor[$home]} ]]; then
		broken "$file" "$line" "\"$header\"" "$to/ stands on floor ${floor[$to]}, this on ${floor[$home]}"
	elif [[ -n ${public[$to]:-} && " ${public[$to]} " != *" $base "* ]]; then
		broken "$file" "$line" "\"$header\"" "internal to $to/; others include, of $to/, ${public[$to]// /, }"
	elif [[ $base == *_internal.h ]]; then
		broken "$file" "$line" "\"$header\"" "internal to $to/"
	fi
}

check_foreign() {
	local file=$1 line=$2 header=$3 rule pattern where why
	for rule in "${foreign[@]}"; do
		why=${rule##*|}
		where=${rule%|*}
		pattern=${where%|*}
		where=${where##*|}
		# A pattern holds "|" inside of its brackets, so it is all before the last two fields.
		if [[ $header =~ ^$pattern && $file != "$where"* ]]; then
			broken "$file" "$line" "<$header>" "$why"
		fi
	done
}

shopt -s nullglob
for home in . rpc vhost bdev reactor hugepages; do
	for file in "$home"/*.c "$home"/*.h; do
		file=${file#./}
		bad=0
		while IFS=: read -r line text; do
			if [[ $text =~ include[[:space:]]*\"([^\"]+)\" ]]; then
				check_own "$file" "$line" "${BASH_REMATCH[1]}" "$home"
			elif [[ $text =~ include[[:space:]]*\<([^\>]+)\> ]]; then
				check_foreign "$file" "$line" "${BASH_REMATCH[1]}"
			fi
		done < <(grep -nE '^[[:space:]]*#[[:space:]]*include' "$file" || true)
		if [[ $bad -eq 0 ]]; then
			passed=$((passed + 1))
		else
			failed=$((failed + 1))
		fi
	done
done

# A check that found nothing to check must not pass for one that found nothing wrong.
if [[ $((passed + failed)) -eq 0 ]]; then
	echo "no sources in $PWD"
	failed=1
fi
echo "$passed passed, $failed failed, 0 skipped"
[[ $failed -eq 0 ]]
