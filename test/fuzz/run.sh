#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# test/fuzz/run.sh BUILD SECONDS   each libFuzzer binary of BUILD for so long, one
# after another, with the corpus beside this script. New inputs go to
# BUILD/fuzz/<name>, crashes to BUILD/fuzz/crash-<name>-*: nothing here changes.
# To take what it found into the corpus: BUILD/test/fuzz/fuzz_<name> -merge=1
# test/fuzz/corpus/<name> BUILD/fuzz/<name>
set -u
cd "$(dirname "$0")/../.." || exit 2
build=$1 seconds=$2
passed=0 failed=0

for bin in "$build"/test/fuzz/fuzz_*; do
	[ -x "$bin" ] || continue
	name=${bin##*/fuzz_}
	work=$build/fuzz/$name
	mkdir -p "$work"
	echo "--- fuzz_$name, $seconds s"
	if "$bin" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -verbosity=0 \
		-print_final_stats=1 -artifact_prefix="$build/fuzz/crash-$name-" \
		"$work" "test/fuzz/corpus/$name" >"$build/fuzz/$name.log" 2>&1; then
		grep -E '^stat::(number_of_executed_units|new_units_added)' "$build/fuzz/$name.log"
		passed=$((passed + 1))
	else
		tail -n 60 "$build/fuzz/$name.log"
		failed=$((failed + 1))
	fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
