#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Upgrades in place of a target whose disks are RBD images: what librbd caches in the old process
is on the disk before the new one serves it.

TAKEOVERS=n takeovers in a row (5)."""
import os

from ceph import CephCase, MIB, SLOW, spindle
from takeovercase import Load, Pauses, TakeoverCase, drive, drive_for, told_us

ARGS = '--poll-us', '50'
TAKEOVERS = int(os.environ.get('TAKEOVERS', '5'))


class Takeover(CephCase, TakeoverCase):
    store = 'bluestore'
    timeout = 120 + 15 * TAKEOVERS

    def test_under_load(self):
        t = self.target('0x1', *ARGS)
        # One with the cache of librbd, one without, one whose key only the target knows.
        paths = [self.disk(t, self.image('cached', 16), 'c0', name='r0', cache='writeback'),
                 self.disk(t, self.image('plain', 16), 'c1', name='r1',
                           config={'rbd_cache': 'false'}),
                 self.disk(t, self.image('key', 16), 'c2', name='r2', key_file=None,
                           config={'key': self.cluster.key(self.user)})]
        loads = [Load(self.connect(p, mem_size=8 * MIB), 16) for p in paths]
        drive_for(loads, 0.5)
        pauses, told = Pauses(loads), []
        for _ in range(TAKEOVERS):
            drive_for(loads, 0.3)
            with pauses:
                s = self.take_over(t, *ARGS, loads=loads)
            told.append(told_us(t) / 1e3)
            t = s
        self.check_load(loads)
        self.note(f'{TAKEOVERS} takeovers, {sum(load.done for load in loads)} I/Os; {pauses}; '
                  f'rings stopped {min(told):.1f} to {max(told):.1f} ms')

    def test_exclusive_is_refused(self):
        t = self.target('0x1', *ARGS)
        load = Load(self.connect(self.disk(t, self.image('ex', 16), exclusive=True),
                                 mem_size=8 * MIB), 16)
        drive_for([load], 0.3)
        s = self.successor(t)
        drive([load], lambda: not s.running(), 30, 'the end of the successor')
        self.assertEqual(s.wait(), 1)
        self.wait_kept(t, [load])
        self.check_load([load])

    def test_cluster_away(self):
        # Caches cannot be written back, images not be opened: the old one keeps its guests.
        t = self.target('0x1', *ARGS)
        path = self.disk(t, self.image('away', 16))
        other = Load(self.connect(self.ctrlr(t, 'm', self.malloc(t)), mem_size=8 * MIB), 16)
        load = Load(self.connect(path, mem_size=8 * MIB), 16)
        drive_for([load, other], 0.5)
        self.cluster.kill_osd()
        try:
            drive_for([load, other], 0.3)
            s = self.successor(t)
            drive([load, other], lambda: not s.running(), 70 // SLOW, 'the end of the successor')
            self.assertEqual(s.wait(), 1)
            self.wait_kept(t, [other])
        finally:
            self.cluster.start_osd()
        spindle.wait_until(load.reap, 30, 'the disk to go on', 0)
        self.check_load([load, other])


if __name__ == '__main__':
    spindle.run_tests()
