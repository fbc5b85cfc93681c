#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Live migration while the disks stand still: the requests in flight go along (inflight-migration).

As test_guest_migrate.py: two disks, split rings and packed ones, and fio with verify on both. Then
no request ends any more (an error bdev's "pending"), and the guest migrates nevertheless. What it
left behind is let go as failed: whoever told the guest of it would be heard of as an I/O error.
Done again at the destination, all is well. Without inflight-migration the migration waits.

Needs a QEMU whose vhost-user-blk device has inflight-migration: 11.0 or later.
"""
import time
import unittest

import test_guest_migrate as migrate
from guest import has_property
from test_guest import MIB, SLOW, Disk, spindle
from test_guest_crash import FIO_ROUND, TROUBLE, UNTIL_ENOUGH

DEVICE, PROPERTY = 'vhost-user-blk-pci', 'inflight-migration'
BANDWIDTH = 1024 * MIB


def sessions(t, name, side):
    return [s for c in t.rpc('vhost_get_controllers', name=f'v.{name}.{side}')
            for s in c['sessions']]


class Inflight(migrate.Migrate):
    timeout = 150
    property = 'on'

    @classmethod
    def setUpClass(cls):
        if not has_property(DEVICE, PROPERTY):
            raise unittest.SkipTest(f'this QEMU has no {DEVICE},{PROPERTY}=on')
        super().setUpClass()

    @classmethod
    def disks(cls, side):
        return [Disk(cls.t.path(f'v.{name}.{side}'), queues=2, **{PROPERTY: cls.property}, **props)
                for name, props in cls.kinds.items()]

    @classmethod
    def bdev(cls, t, name, path):
        """name.slow, as elsewhere, is below EE_name.slow, which may stall."""
        super().bdev(t, name, path)
        t.rpc('bdev_error_create', base_name=name + '.slow')

    @classmethod
    def controller(cls, t, name, side):
        t.rpc('vhost_create_blk_controller', ctrlr=f'v.{name}.{side}', dev_name=f'EE_{name}.slow',
              packed_ring=name == 'packed')

    def target(self, side):
        """The one that serves this side."""
        return self.t

    def inject(self, t, io_type, error_type, num):
        for name in self.kinds:
            t.rpc('bdev_error_inject_error', name=f'EE_{name}.slow', io_type=io_type,
                  error_type=error_type, num=num)

    def load(self):
        self.sh('rm -f /tmp/enough; dmesg -c >/dev/null')
        tickets = [self.guest.start(UNTIL_ENOUGH.format(fio=FIO_ROUND.format(dev=dev, size=32)))
                   for dev in ('/dev/vda', '/dev/vdb')]
        time.sleep(1.5)
        return tickets

    def finish(self, tickets):
        time.sleep(1.5)
        for ticket in tickets:
            if self.guest.done(ticket):
                self.guest.check_wait(ticket)
                self.fail('a load ended by itself')
        self.sh('touch /tmp/enough')
        rounds = [self.guest.check_wait(t, 60 * SLOW, 'a load').split()[-1] for t in tickets]
        self.assertEqual(self.sh(TROUBLE), '')
        print(f'     loads: {rounds}', flush=True)

    def standing(self, t, side):
        """-> how many requests of each disk stand still: all there are, of both."""
        counts = {}

        def look():
            new = {name: sum(s['inflight_task_cnt'] for s in sessions(t, name, side))
                   for name in self.kinds}
            # More come as long as fio has any to submit; slower ones end meanwhile.
            same = counts.get('at') == new and min(new.values()) > 0
            counts['at'] = new
            return same and new

        return spindle.wait_until(look, 20, 'requests that stand still', interval=0.5)

    def count(self, t, side, what):
        return {name: sum(s[what] for s in sessions(t, name, side)) for name in self.kinds}

    def left(self, t):
        """How many requests were left behind, by the log of the source's target."""
        text = t.log()
        return {name: sum(int(line.partition('stopped with ')[2].split()[0])
                          for line in text.splitlines()
                          if f'v.{name}.' in line and 'stopped with ' in line)
                for name in self.kinds}

    def test_under_load(self):
        source, there = self.target(0), self.target(1)
        tickets = self.load()
        self.inject(source, 'all', 'pending', 100000)
        stalled = self.standing(source, 0)
        began = time.monotonic()
        info = self.migrate(1, BANDWIDTH)
        took = time.monotonic() - began
        left = self.left(source)
        print(f'     stalled: {stalled}, left behind: {left}; migrated in {took:.1f} s, '
              f'downtime {info["downtime"]} ms', flush=True)
        self.assertEqual(left, stalled)
        # The guest runs, but not its disks: as long as there are requests there.
        self.assertEqual(self.guest.qmp('query-status')['status'], 'running')
        self.sh('true')
        spindle.wait_until(lambda: all(self.count(there, 1, 'waiting_queues').values()), 10,
                           'queues that wait')
        time.sleep(1)
        self.assertEqual(self.count(there, 1, 'inflight_task_cnt'), dict.fromkeys(self.kinds, 0))
        self.inject(source, 'clear', 'clear', 1)
        spindle.wait_until(lambda: not any(self.count(there, 1, 'waiting_queues').values()), 10,
                           'queues that run')
        self.finish(tickets)
        self.assertIn('resubmitting', there.log())


class InflightTwoTargets(Inflight, migrate.TwoTargets):
    """A file that is locked in turns, and a target for each side."""

    @classmethod
    def second_target(cls):
        cls.other = super().second_target()
        return cls.other

    def target(self, side):
        return self.other if side else self.t


class Drained(Inflight):
    """Without it: QEMU waits until the last request has ended, and the guest with it."""
    property = 'off'
    seconds = 25

    def slow(self, us):
        for name in self.kinds:
            for which in ('avg_read', 'p99_read', 'avg_write', 'p99_write'):
                self.t.rpc('bdev_delay_update_latency', delay_bdev_name=name + '.slow',
                           latency_type=which, latency_us=us)

    def test_under_load(self):
        tickets = self.load()
        self.slow(self.seconds * 10 ** 6)
        began = time.monotonic()
        self.standing(self.t, 0)
        info = self.migrate(1, BANDWIDTH)
        took = time.monotonic() - began
        self.slow(0)
        print(f'     migrated {took:.1f} s after the disks got slow, downtime {info["downtime"]} ms',
              flush=True)
        self.assertGreater(took, self.seconds)
        # In ms, for which the guest stood still: it was stopped well before that.
        self.assertGreater(info['downtime'], 1000)
        self.assertEqual(self.left(self.t), dict.fromkeys(self.kinds, 0))
        self.finish(tickets)


if __name__ == '__main__':
    spindle.run_tests()
