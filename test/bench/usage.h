/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's --help. */
#ifndef BENCH_USAGE_H
#define BENCH_USAGE_H

static const char usage[] =
	"bench --socket PATH [options]: load for a vhost-user-blk target\n"
	"  --qd N          requests in flight per queue (1)\n"
	"  --bs BYTES      bytes a request, k and m allowed (4k)\n"
	"  --queues N      queues, all driven by this one thread (1)\n"
	"  --rw MODE[:PCT] randread, randwrite, read, write, randrw, rw; PCT: writes in a mix (50)\n"
	"  --read-pct PCT  reads in a mix, instead of PCT\n"
	"  --runtime S     seconds, fractions allowed (2)\n"
	"  --ios N         stop after about N requests\n"
	"  --size BYTES    use only so much of the disk, k, m and g allowed\n"
	"  --cpu N         pin to this CPU\n"
	"  --mem KIND      guest memory: memfd or hugetlb (memfd)\n"
	"  --indirect      indirect descriptors instead of three direct ones\n"
	"  --event-idx     the event index instead of the flags\n"
	"  --packed        packed rings\n"
	"  --no-inflight   without the in-flight region\n"
	"  --rewrite       write descriptors anew for each request, as a driver does\n"
	"  --wait          sleep until the target calls instead of polling\n"
	"  --calls N       with --wait --event-idx: a call after N completions (1)\n"
	"  --beside S,QD,BS also read at random from the socket S, so deep, so large\n"
	"  --verify        write known data, check what is read\n"
	"  --prefill       first write the whole range once\n"
	"  --libblkio      libblkio's start sequence instead of QEMU's\n"
	"  --seed N        of the random numbers\n"
	"  --json          the result as one JSON object\n"
	"  --histogram     the same with all latencies: [us, count] of each bucket\n"
	"  --memcpy        no target: plain copies in memory, the limit of a RAM disk\n"
	"  --prefetch      with --memcpy: the next block is asked for during a copy\n"
	"  --gaps          no target: a loop for --runtime, and how much of that it did not run\n"
	"  --ping N        no target: a cache line's journey from --cpu to CPU N and back\n";

#endif
