#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# clang-tidy and cppcheck over the product's sources. What either says is a
# failure; an exception is written beside the code it is about (NOLINT, or
# cppcheck-suppress, with its reason). Ends with a count, as every test does.
set -u
cd "$(dirname "$0")/.." || exit 2
passed=0 failed=0 skipped=0
src=$(git ls-files 'main.c' 'reactor/*.c' 'hugepages/*.c' 'bdev/*.c' 'vhost/*.c' 'rpc/*.c' 2>/dev/null)
[ -n "$src" ] || src=$(ls main.c reactor/*.c hugepages/*.c bdev/*.c vhost/*.c rpc/*.c)

if command -v clang-tidy >/dev/null; then
	# shellcheck disable=SC2086
	out=$(printf '%s\n' $src | xargs -P "$(nproc)" -n 4 \
		sh -c 'clang-tidy --quiet "$@" -- -std=gnu11 -D_GNU_SOURCE -DSPINDLE_RBD=1 -I. 2>/dev/null' tidy | grep -E 'warning:|error:' | sort -u)
	if [ -z "$out" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); printf '%s\n' "$out"; fi
else
	echo "skip: clang-tidy: not installed"; skipped=$((skipped + 1))
fi

if command -v cppcheck >/dev/null; then
	# shellcheck disable=SC2086
	out=$(cppcheck --quiet --inline-suppr --std=c11 -D_GNU_SOURCE -DSPINDLE_RBD=1 -D__x86_64__ -D__linux__ -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 -I. -j "$(nproc)" \
		--enable=warning,performance,portability --suppressions-list=scripts/cppcheck.txt \
		$src 2>&1 | grep -E 'warning|error|performance|portability')
	if [ -z "$out" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); printf '%s\n' "$out"; fi
else
	echo "skip: cppcheck: not installed"; skipped=$((skipped + 1))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
