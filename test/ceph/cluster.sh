#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# cluster.sh COMMAND DIR    a Ceph cluster of one monitor and one OSD on 127.0.0.1
#
#   start       make it, or start again what DIR holds; prints the path of its ceph.conf
#   stop        stop its daemons; the data stay
#   kill        SIGKILL for both; a memstore is lost
#   destroy     kill and remove DIR
#   kill-osd  start-osd  kill-mon  start-mon  status
#
# Plain processes of the distribution's packages, and everything they keep, in DIR. With
# STORE=memstore it takes half a second to start, but does not outlive a kill; with
# STORE=bluestore it lies in a sparse file and does. No manager: disks do not need one.
#
# Environment: STORE=memstore, AUTH=cephx (or none), SIZE=4 (GiB of the store),
# POOLS="testpool otherpool", EXTRA="lines for [global]", OWNER=PID (when that process ends,
# the cluster is destroyed).
#
# Users, all in DIR/keyring and in a file of their own, DIR/keyring.NAME:
#   admin     everything            spindle   an RBD user of testpool
#   other     an RBD user of otherpool: testpool is closed to it
set -u
export LC_ALL=C PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
unset CEPH_CONF CEPH_ARGS
ulimit -c 0

usage() { sed -n '4,22s/^# \{0,1\}//p' "$0" >&2; exit 2; }
say() { echo "cluster.sh: $*" >&2; }
die() {
	say "$1"
	[ $# -lt 2 ] || tail -n 15 "$2" >&2
	exit 1
}

[ $# -eq 2 ] || usage
command=$1
mkdir -p "$2" || exit 1
dir=$(cd "$2" && pwd)
conf=$dir/ceph.conf
store=${STORE:-memstore} auth=${AUTH:-cephx} size=${SIZE:-4}
read -ra pools <<<"${POOLS:-testpool otherpool}"
# Unix sockets in it must stay below 108 bytes.
[ ${#dir} -le 70 ] || die "the name of $dir is too long"

# ---- processes -----------------------------------------------------------------------------

# The daemon's pid if it runs; pids are used again, so its command line must name our conf.
pid_of() {
	local pid
	pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
	tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$conf" && echo "$pid"
}

gone() { # a zombie is gone too: init may take its time to reap it
	local state
	state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
	[ -z "$state" ] || [ "$state" = Z ]
}

end() { # end NAME SIGNAL
	local pid i
	pid=$(pid_of "$1") || return 0
	kill "-$2" "$pid" 2>/dev/null
	for ((i = 0; i < 500; i++)); do
		gone "$pid" && return 0
		sleep 0.02
	done
	kill -KILL "$pid"
	say "$1 did not stop: killed"
}

start_mon() {
	pid_of mon >/dev/null ||
		ceph-mon -i a -c "$conf" >>"$dir/mon.out" 2>&1 </dev/null ||
		die "the monitor does not start" "$dir/mon.log"
}

start_osd() {
	local try
	# What was killed may still hold its locks: the kernel lets go of them in its own time.
	for try in 1 2 3 4 5; do
		pid_of osd >/dev/null && return
		ceph-osd -i 0 -c "$conf" --no-mon-config >>"$dir/osd.out" 2>&1 </dev/null && return
		sleep "$try"
	done
	die "the OSD does not start" "$dir/osd.log"
}

# Asks the OSD itself, over its admin socket: quick, and needs no monitor.
osd_active() {
	/usr/bin/python3 - "$dir/osd.asok" <<-'PY' 2>/dev/null
	import socket, struct, sys
	s = socket.socket(socket.AF_UNIX)
	s.settimeout(5)
	s.connect(sys.argv[1])
	s.sendall(b'{"prefix": "status"}\0')
	f = s.makefile('rb')
	text = f.read(struct.unpack('>I', f.read(4))[0])
	sys.exit(0 if b'"state": "active"' in text else 1)
	PY
}

wait_osd() {
	local i
	for ((i = 0; i < 300; i++)); do
		[ -S "$dir/osd.asok" ] && osd_active && return 0
		sleep 0.1
	done
	die "the OSD is not active after 30 s" "$dir/osd.log"
}

# ---- a new cluster -------------------------------------------------------------------------

free_port() {
	local port
	while :; do
		port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		ss -Hltn "sport = :$port" 2>/dev/null | grep -q . || break
	done
	echo $port
}

write_conf() {
	cat >"$conf" <<-CONF
	[global]
	fsid = $1
	mon_host = $2
	public_addr = 127.0.0.1
	cluster_addr = 127.0.0.1
	ms_bind_msgr1 = false
	auth_cluster_required = $auth
	auth_service_required = $auth
	auth_client_required = $auth
	auth_allow_insecure_global_id_reclaim = false
	keyring = $dir/keyring
	run_dir = $dir
	crash_dir = $dir
	admin_socket =
	log_file =
	log_to_stderr = false
	max_open_files = 0
	osd_pool_default_size = 1
	osd_pool_default_min_size = 1
	osd_pool_default_pg_autoscale_mode = off
	osd_crush_chooseleaf_type = 0
	mon_allow_pool_size_one = true
	mon_allow_pool_delete = true
	mon_warn_on_pool_no_redundancy = false
	rbd_default_pool = ${pools[0]}
	CONF
	for part in ms auth monc mon paxos osd bluestore bluefs bdev rocksdb objecter rados rbd \
		objectcacher journal throttle timer finisher optracker context asok perfcounter \
		crush buffer; do
		echo "debug_$part = 0/0"
	done >>"$conf"
	cat >>"$conf" <<-CONF
	${EXTRA:-}
	[mon]
	mon_data = $dir/mon
	log_file = $dir/mon.log
	pid_file = $dir/mon.pid
	admin_socket = $dir/mon.asok
	mon_cluster_log_file = $dir/cluster.log
	mon_cluster_log_to_syslog = false
	paxos_propose_interval = 0.05
	paxos_min_wait = 0.01
	mon_data_avail_warn = 1
	mon_data_avail_crit = 0
	mon_osd_min_down_reporters = 1
	mon_osd_down_out_interval = 86400
	mon_memory_autotune = false
	rocksdb_cache_size = 33554432
	[osd]
	osd_data = $dir/osd
	log_file = $dir/osd.log
	pid_file = $dir/osd.pid
	admin_socket = $dir/osd.asok
	osd_objectstore = $store
	osd_fast_shutdown = $([ "$store" = memstore ] && echo false || echo true)
	memstore_page_set = true
	memstore_device_bytes = $((size << 30))
	bluestore_block_size = $((size << 30))
	bluestore_block_create = true
	bluestore_block_preallocate_file = false
	bluestore_fsck_on_mkfs = false
	osd_memory_target = 1073741824
	osd_memory_target_autotune = false
	osd_crush_update_on_start = false
	osd_class_update_on_start = false
	osd_mon_report_interval = 1
	osd_enable_op_tracker = false
	CONF
}

# All users' keys go into the keyring that the monitor is born with: no commands needed later.
write_keys() {
	local name
	key() {
		ceph-authtool "$dir/keyring" --gen-key -n "$@" >/dev/null || die "ceph-authtool failed"
	}
	ceph-authtool -C "$dir/keyring" >/dev/null
	key mon. --cap mon 'allow *'
	key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
	key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
	key client.spindle --cap mon 'profile rbd' --cap osd 'profile rbd pool=testpool'
	key client.other --cap mon 'profile rbd' --cap osd 'profile rbd pool=otherpool'
	for name in admin spindle other; do
		ceph-authtool -C "$dir/keyring.$name" -n "client.$name" \
			--add-key "$(ceph-authtool "$dir/keyring" -n "client.$name" -p)" >/dev/null
	done
}

# By the monitor: pools that an initial OSD map names never get their placement groups.
make_pools() {
	/usr/bin/python3 - "$conf" "${pools[@]}" <<-'PY'
	import json, sys, rados
	cluster = rados.Rados(conffile=sys.argv[1], name='client.admin',
	                      conf={'client_mount_timeout': '15', 'rados_mon_op_timeout': '15'})
	cluster.connect()
	for pool in sys.argv[2:]:
	    for command in ({'prefix': 'osd pool create', 'pool': pool, 'pg_num': 8},
	                    {'prefix': 'osd pool application enable', 'pool': pool, 'app': 'rbd'}):
	        status, _, text = cluster.mon_command(json.dumps(command), b'')
	        if status:
	            sys.exit(f'{command}: {status} {text}')
	PY
}

birth() {
	local fsid address osd_job
	fsid=$(cat /proc/sys/kernel/random/uuid)
	address="[v2:127.0.0.1:$(free_port)/0]"
	mkdir -p "$dir/mon" "$dir/osd"
	write_conf "$fsid" "$address"
	write_keys
	osdmaptool -c "$conf" --createsimple 1 "$dir/osdmap" --clobber >"$dir/maps.out" 2>&1 ||
		die "cannot make the first OSD map" "$dir/maps.out"
	monmaptool --create --clobber --fsid "$fsid" --addv a "$address" \
		--set-min-mon-release 16 "$dir/monmap" >>"$dir/maps.out" 2>&1 ||
		die "cannot make the monitor map" "$dir/maps.out"
	ceph-osd -i 0 -c "$conf" --mkfs --osd-uuid "$(cat /proc/sys/kernel/random/uuid)" \
		--no-mon-config >>"$dir/osd.out" 2>&1 </dev/null &
	osd_job=$!
	ceph-mon -i a -c "$conf" --mkfs --fsid "$fsid" --monmap "$dir/monmap" \
		--osdmap "$dir/osdmap" --keyring "$dir/keyring" >>"$dir/mon.out" 2>&1 </dev/null ||
		die "cannot make the monitor's store" "$dir/mon.out"
	start_mon
	wait $osd_job || die "cannot make the OSD's store" "$dir/osd.out"
	start_osd
	make_pools >>"$dir/pools.out" 2>&1 || die "cannot make the pools" "$dir/pools.out"
	wait_osd
	touch "$dir/born"
}

# Outlives whoever started us, and cleans up behind it.
watch_owner() {
	touch "$dir/watched"
	(
		while kill -0 "$OWNER" 2>/dev/null && [ -e "$conf" ]; do sleep 2; done
		[ ! -e "$conf" ] || "$0" destroy "$dir"
	) >/dev/null 2>&1 </dev/null &
	disown
}

case $command in
start)
	if [ -e "$dir/born" ]; then
		start_mon
		start_osd
		wait_osd
	else
		birth
	fi
	[ -z "${OWNER:-}" ] || [ -e "$dir/watched" ] || watch_owner
	echo "$conf"
	;;
stop) end osd TERM; end mon TERM ;;
kill) end osd KILL; end mon KILL ;;
destroy) end osd KILL; end mon KILL; rm -rf "$dir" ;;
kill-osd) end osd KILL ;;
start-osd) start_osd; wait_osd ;;
kill-mon) end mon KILL ;;
start-mon) start_mon ;;
status)
	for name in mon osd; do
		if pid=$(pid_of $name); then echo "$name: pid $pid"; else echo "$name: down"; fi
	done
	;;
*) usage ;;
esac
