#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The target is killed under a guest's load, and started again: a pause, and nothing else.

One guest with two disks on files, one with split rings and one with packed ones, both of two
queues, and fio with verify on both all the time. In-flight tracking has to bring back each
request that was taken and not answered: one lost hangs fio, one answered twice is an error of
the guest's driver, one done out of order is a verify error. In every second life the target's disks are slow (a delay bdev on the
file), so that the next kill finds requests in flight.

CRASH_ROUNDS: how many times the target is killed, 3 if not given.
"""
import os
import re
import signal
import time

from test_guest import MIB, SLOW, Disk, GuestTest, sparse, spindle

ROUNDS = int(os.environ.get('CRASH_ROUNDS', 3))
# Again and again, until /tmp/enough is there: every one of them reads back all it wrote.
FIO_ROUND = ('fio --name=v --filename={dev} --rw=randrw --bsrange=4k-64k --size={size}m --direct=1 '
             '--ioengine=libaio --iodepth=32 --numjobs=2 --offset_increment={size}m '
             '--cpus_allowed=0-1 --cpus_allowed_policy=split --verify=crc32c --verify_fatal=1 '
             '--verify_backlog=512 --randrepeat=0 --minimal')
UNTIL_ENOUGH = 'n=0; while [ ! -e /tmp/enough ]; do {fio} || exit 1; n=$((n+1)); done; echo rounds=$n'
TROUBLE = 'dmesg | grep -iE "i/o error|blk_update|virtio.*(id|broken|reset)|hung|blocked for" || true'


class Crash(GuestTest):
    timeout = 60 + 20 * ROUNDS
    target_args = ('--poll-us', '200', '--log-level', 'INFO')
    kinds = {'split': {}, 'packed': {'packed': 'on'}}

    @classmethod
    def prepare(cls):
        for name in cls.kinds:
            sparse(cls.t.path(name + '.img'), 128 * MIB)
        cls.configure(slow=True)
        return [Disk(cls.t.path('v.' + name), queues=2, reconnect=1, **props)
                for name, props in cls.kinds.items()]

    @classmethod
    def configure(cls, slow):
        """slow: requests take so long that the kill is sure to find some in flight."""
        for name in cls.kinds:
            cls.bdev(name)
            if slow:
                us = 40000
                cls.t.rpc('bdev_delay_create', base_bdev_name=name, name=name + '.slow',
                          avg_read_latency=us, p99_read_latency=us, avg_write_latency=us,
                          p99_write_latency=us)
            cls.t.rpc('vhost_create_blk_controller', ctrlr='v.' + name,
                      dev_name=name + '.slow' * slow, packed_ring=name == 'packed')

    @classmethod
    def bdev(cls, name):
        cls.t.rpc('bdev_aio_create', filename=cls.t.path(name + '.img'), name=name, block_size=512)

    def start_again(self, slow):
        self.t.start()
        self.configure(slow)

    def served(self):
        """Requests that each disk has served in this target's life."""
        stat = {b['name']: b for b in self.t.rpc('bdev_get_iostat')['bdevs']}
        return {name: stat[name]['num_read_ops'] + stat[name]['num_write_ops']
                for name in self.kinds}

    def wait_served(self, began):
        """Seconds since then until each disk's first request."""
        took = {}

        def look():
            for name, count in self.served().items():
                if count:
                    took.setdefault(name, time.monotonic() - began)
            return len(took) == len(self.kinds)

        spindle.wait_until(look, 20, 'I/O after the restart', interval=0.005)
        return took

    def resubmitted(self):
        return {name: sum(int(n) for n in re.findall(
            rf'v\.{name}\S*: resubmitting (\d+) requests', self.t.log())) for name in self.kinds}

    def wait_in_flight(self):
        """Both disks have requests under way, which the slow ones will have for long."""
        def look():
            return all(session['inflight_task_cnt'] > 3
                       for c in self.t.rpc('vhost_get_controllers') for session in c['sessions'])

        spindle.wait_until(look, 20, 'requests in flight', interval=0.005)

    def load(self):
        self.sh('rm -f /tmp/enough; dmesg -c >/dev/null')
        return [self.guest.start(UNTIL_ENOUGH.format(fio=FIO_ROUND.format(dev=dev, size=32)))
                for dev in ('/dev/vda', '/dev/vdb')]

    def still_running(self, tickets):
        for ticket in tickets:
            if self.guest.done(ticket):
                self.guest.check_wait(ticket)
                self.fail('fio ended by itself')

    def finish(self, tickets):
        """Let fio come to its end and its last verify; nobody has seen an error."""
        self.sh('touch /tmp/enough')
        rounds = [self.guest.check_wait(t, 60 * SLOW, 'fio').split()[-1] for t in tickets]
        self.assertEqual(self.sh(TROUBLE), '')
        return rounds

    def report(self, what, times):
        for name in self.kinds:
            all_of_it = sorted(t[name] for t in times)
            print(f'     {what}, {name}: first I/O after {all_of_it[0]:.2f} to {all_of_it[-1]:.2f} s, '
                  f'median {all_of_it[len(all_of_it) // 2]:.2f} s, of {len(times)}', flush=True)

    def test_1_packed_rings_are_used(self):
        """The rest of this file would say nothing of packed rings otherwise."""
        # Feature bits in the order of their numbers: 34 is RING_PACKED.
        bits = self.sh('cat /sys/block/vda/device/features /sys/block/vdb/device/features')
        self.assertEqual([line[34] for line in bits.split()], ['0', '1'])
        self.assertEqual(self.sh('ls /sys/block/vda/mq /sys/block/vdb/mq | grep -c "^[01]$"'), '4')

    def test_2_kill(self):
        tickets, times, found = self.load(), [], []
        for i in range(ROUNDS):
            # Not always at the same place of fio's program.
            time.sleep(1.5 + 0.37 * (i % 4))
            self.still_running(tickets)
            if i % 2 == 0:
                self.wait_in_flight()
            began = time.monotonic()
            self.t.kill()
            self.start_again(slow=i % 2 == 1)
            times.append(self.wait_served(began))
            found.append(self.resubmitted())
        time.sleep(1)
        self.still_running(tickets)
        rounds = self.finish(tickets)
        self.report('kill -9', times)
        for name in self.kinds:
            counts = [f[name] for f in found]
            print(f'     {name}: {counts} requests resubmitted', flush=True)
            self.assertGreater(sum(counts), 0)
        print(f'     fio: {rounds}', flush=True)

    def test_3_terminate(self):
        """SIGTERM under load: it exits with 0, and the guest waits for the next."""
        tickets, times = self.load(), []
        for _ in range(max(1, ROUNDS // 2)):
            time.sleep(1.5)
            self.still_running(tickets)
            began = time.monotonic()
            took = self.t.stop(signal.SIGTERM)
            self.start_again(slow=True)
            times.append(self.wait_served(began))
            self.assertLess(took, 5 * SLOW)
        self.finish(tickets)
        self.report('SIGTERM', times)


if __name__ == '__main__':
    spindle.run_tests()
