#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# test/run.sh              everything, on a fresh Debian 12 as root: installs the
#                          packages, builds with gcc and clang, reserves huge pages,
#                          runs all suites and lint, then unit, functional and fuzz
#                          again under sanitizers
# test/run.sh SUITE ...    suites of the build in $BUILD (default build), built
#                          already: unit functional guest fuzz ceph lint
#
# Every suite ends with a line `N passed, N failed, N skipped`; the last line
# here is their sum. A suite that dies without that line counts as one failure.
# Logs: $BUILD/test/logs. Exit status 0 only when nothing failed.
set -u
cd "$(dirname "$0")/.." || exit 2
export BUILD=${BUILD:-build}
PYTHON=${PYTHON:-/usr/bin/python3}
export TSAN_OPTIONS=${TSAN_OPTIONS:-suppressions=$PWD/test/lib/tsan.supp}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
passed=0 failed=0 skipped=0

# run NAME COMMAND...: one suite program, its output shown when it failed
run() {
	local name=$1 log rc line t0=$SECONDS
	shift
	log=$BUILD/test/logs/$name.log
	mkdir -p "$(dirname "$log")"
	timeout -k 10 "${SUITE_TIMEOUT:-900}" "$@" >"$log" 2>&1 </dev/null
	rc=$?
	line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
	if [ -z "$line" ] || { [ $rc -ne 0 ] && [[ $line == *", 0 failed,"* ]]; }; then
		echo "--- $name ended with status $rc and without a count of its failures:"
		tail -n 40 "$log"
		line="0 passed, 1 failed, 0 skipped"
	elif [ $rc -ne 0 ]; then
		echo "--- $name:"
		tail -n 80 "$log"
	fi
	grep -E '^skip: ' "$log"
	read -r p _ f _ s _ <<<"${line//,/}"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	printf '%-40s %s  (%d s)\n' "$BUILD $name" "$line" $((SECONDS - t0))
}

suite() {
	local t name
	case $1 in
	unit)
		for t in test/unit/test_*.c; do
			t=$(basename "$t" .c)
			run "unit/$t" "$BUILD/test/unit/$t"
		done ;;
	functional)
		for t in test/functional/test_*.py; do
			name=$(basename "$t" .py)
			[[ " ${SKIP-} " == *[[:space:]]"$name"[[:space:]]* ]] && continue
			if [[ " ${POLLED-} " == *[[:space:]]"$name"[[:space:]]* ]]; then
				POLL_US='' run "functional/$name" "$PYTHON" "$t"
			else
				run "functional/$name" "$PYTHON" "$t"
			fi
		done ;;
	guest)
		# They say themselves how their targets wait.
		for t in test/guest/test_*.py; do
			POLL_US='' run "guest/$(basename "$t" .py)" "$PYTHON" "$t"
		done ;;
	fuzz)
		for t in test/fuzz/fuzz_*.c; do
			t=$(basename "$t" .c)
			run "fuzz/$t" "$BUILD/test/fuzz/$t"
		done ;;
	ceph)
		for t in test/ceph/test_*.py; do
			[ -e "$t" ] && run "ceph/$(basename "$t" .py)" "$PYTHON" "$t"
		done ;;
	lint)
		run lint/layers scripts/check-layers.sh
		run lint/code scripts/lint.sh ;;
	*) echo "test/run.sh: what is '$1'?"; exit 2 ;;
	esac
}

make_variant() { # make_variant NAME ARG...: one build; its status in build/logs
	local name=$1 rc
	shift
	make -j"$(nproc)" "$@" >"build/logs/$name.log" 2>&1
	rc=$?
	echo $rc >"build/logs/$name.rc.new"
	mv "build/logs/$name.rc.new" "build/logs/$name.rc"
	return $rc
}

built() { # built NAME: count a build as a test
	local rc
	rc=$(cat "build/logs/$1.rc" 2>/dev/null || echo 1)
	if [ "$rc" = 0 ]; then
		passed=$((passed + 1))
		printf '%-40s %s\n' "build $1" "1 passed, 0 failed, 0 skipped"
		return 0
	fi
	failed=$((failed + 1))
	echo "--- build $1 failed:"
	grep -E 'error|warning|\*\*\*' "build/logs/$1.log" | head -n 40
	return 1
}

# lane NAME NICE COMMAND...: runs beside the others until "join NAME" shows what it printed and
# adds what it counted.
declare -A lanes
lane() {
	local name=$1 nice=$2
	shift 2
	(
		renice -n "$nice" $BASHPID >/dev/null
		count_into "build/logs/$name.count" "$@"
	) >"build/logs/$name.lane" 2>&1 &
	lanes[$name]=$!
}

count_into() { # count_into FILE COMMAND...
	local file=$1
	shift
	passed=0 failed=0 skipped=0
	"$@"
	echo "$passed $failed $skipped" >"$file"
}

join() {
	local p=0 f=0 s=0
	wait "${lanes[$1]}"
	cat "build/logs/$1.lane"
	read -r p f s 2>/dev/null <"build/logs/$1.count" || { p=0 f=1 s=0; }
	unset "lanes[$1]"
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

await() { # await LANE NAME: a build of that lane
	until [ -e "build/logs/$2.rc" ] || ! kill -0 "${lanes[$1]}" 2>/dev/null; do
		sleep 1
	done
}

# Of a run that was broken off: each with what it runs just now.
stop_lanes() {
	local pid children
	for pid in "${lanes[@]}"; do
		mapfile -t children < <(pgrep -P "$pid")
		kill "$pid" "${children[@]}" 2>/dev/null
	done
}

make_others() {
	make_variant address,undefined SAN=address,undefined tests
	make_variant thread SAN=thread tests
	make_variant clang CC=clang WERROR=1 BUILD=build/clang all tests "${clang_too[@]}"
	make_variant without-rbd RBD=0 WERROR=1 BUILD=build/norbd all
	suite lint
}

sanitized() { # sanitized NAME SUITE...: of that build, without SKIP's programs
	built "$1" || return
	BUILD=build/${1//,/-}
	shift
	for s in "$@"; do suite "$s"; done
}

everything() {
	# Long, and of processes that are killed or of locks: run once, not under sanitizers.
	local clang_too=()
	local twice="test_fio test_bench test_modes test_restart test_takeover test_crash
		test_takeover_fail test_scale test_locks test_lock_in_use test_systemd"
	# No threads but those that other suites have as well.
	local threads="test_inflight test_postcopy test_rpc_params test_abandon test_dirty_log
		test_packed test_vhost_badmsg test_badinput test_vhost_protocol test_blk_requests
		test_notify test_rpc_hostile"
	if [ "$(id -u)" = 0 ]; then
		scripts/pkgdep.sh || echo "skip: packages: scripts/pkgdep.sh could not install them"
		HUGEMEM=${HUGEMEM:-3072} scripts/setup.sh ||
			echo "note: fewer huge pages than asked for; tests that need them say so"
	else
		echo "note: not root: nothing is installed, no huge pages are reserved"
	fi
	mkdir -p build/logs
	rm -f build/logs/*.rc build/logs/*.count
	make_variant gcc WERROR=1 tests
	built gcc || return
	if test/fio/fetch.sh build/fio/source; then
		make_variant fio WERROR=1 fio
		built fio
		clang_too=(fio FIO_SRC=build/fio/source)
	else
		echo "skip: build fio: the source of fio is not to be had"
		skipped=$((skipped + 1))
	fi
	# Side by side: the Ceph suites mostly wait, and the builds take what is left. Targets that
	# poll for ever would take that from each other; those that move data do it all the same.
	export POLL_US=${POLL_US-200}
	POLLED="test_blk_data test_blk_requests test_crash test_isolation test_modes test_packed
		test_park test_shutdown test_takeover test_vhost_chaos test_vhost_memory test_vhost_rings"
	# More than that at a time is too much: what waits for a second then waits for ten.
	trap stop_lanes EXIT
	lane ceph 0 suite ceph
	for s in unit fuzz functional; do suite "$s"; done
	lane others 19 make_others
	suite guest
	join ceph
	await others thread
	lane thread-units 0 sanitized thread unit fuzz
	BUILD=build SKIP="$twice" sanitized address,undefined unit fuzz functional
	join thread-units
	join others
	built clang
	built without-rbd
	if [ "$(cat build/logs/thread.rc)" = 0 ]; then
		BUILD=build/thread SKIP="$twice $threads" suite functional
	fi
}

if [ $# -eq 0 ]; then
	everything
else
	for s in "$@"; do suite "$s"; done
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
