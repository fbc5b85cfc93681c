#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Runs one of the jobs beside this file, in a guest on its disk or without a guest on the target's
# socket.
#
# Usage: run.sh JOB TARGET [KEY=VALUE | --FIO-OPTION]...
#
#   JOB      randread, randwrite, mixed, sequential, latency or verify
#   TARGET   a block device (/dev/vdb), a file, or a vhost-user-blk socket (/var/tmp/vhost.1)
#   KEY=VALUE goes into the job's [global] section, such as queues=2 or rate_iops=1000;
#   --FIO-OPTION goes to fio itself, such as --output-format=json
#
# From the environment, with these defaults:
#   BS=4k (sequential: 128k)  QD=32 (latency: 1)  JOBS=1  RUNTIME=10 (s)  SIZE=100% (verify: 64m)
#   RW       what the job does, where it leaves a choice; see the head of its file
#   ENGINE   libaio for devices and files, for sockets the engine that "make fio" builds
#
# ALL JOBS BUT randread, latency and sequential WITHOUT RW= OVERWRITE THE DISK.
#
# Needs nothing but a POSIX shell, fio and the job files: copy the folder into the guest.

set -eu
here=$(cd "$(dirname "$0")" && pwd)

usage() {
	sed -n '3,/^$/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
	exit 2
}

[ $# -ge 2 ] || usage
job=$here/$1.fio
FILENAME=$2
name=$1
shift 2
if [ ! -e "$job" ]; then
	echo "run.sh: no job $name" >&2
	usage
fi

bs=4k qd=32 size=100% rw=
case $name in
sequential) bs=128k rw=read ;;
latency) qd=1 rw=randread ;;
mixed) rw=70 ;;
verify) size=64m rw=randwrite ;;
esac

if [ -S "$FILENAME" ]; then
	so=$here/../../build/fio/vhost_user_blk.so
	: "${ENGINE:=external:$so}"
	if [ "$ENGINE" = "external:$so" ] && [ ! -e "$so" ]; then
		echo "run.sh: $FILENAME is a socket, which needs fio's engine: make fio" >&2
		exit 1
	fi
fi

export FILENAME
export ENGINE="${ENGINE:-libaio}"
export BS="${BS:-$bs}" QD="${QD:-$qd}" JOBS="${JOBS:-1}" RUNTIME="${RUNTIME:-10}"
export SIZE="${SIZE:-$size}" RW="${RW:-$rw}"

more=
for arg; do
	shift
	case $arg in
	-*) set -- "$@" "$arg" ;;
	*=*) more="$more$arg
" ;;
	*) usage ;;
	esac
done

# Behind ioengine=, since an engine's own options are unknown before.
while IFS= read -r line; do
	printf '%s\n' "$line"
	case $line in
	ioengine=*) printf '%s' "$more" ;;
	esac
done < "$job" | fio "$@" -
