#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What clusters do to a guest that runs fio with verify on an image: the OSD dies and comes back,
the monitor dies, the cluster is full, the client is fenced. The guest waits and goes on, or gets
errors where it must; never wrong data. Beside it, a malloc disk of the same target is watched.

OSD_SECONDS: for how long the OSD is away, 7 if not given. One guest serves all tests, which come
in the order of their names: after the last its disk is lost.
"""
import contextlib
import hashlib
import os
import pathlib
import sys
import time
import unittest

from ceph import HERE, MIB, POOL, SLOW, Cluster, Neighbour, spindle
from test_rbd_faults import FaultCase

sys.path.insert(0, str(HERE.parent / 'guest'))
from guest import Disk, Guest, Unavailable                  # noqa: E402
from test_guest_crash import TROUBLE, UNTIL_ENOUGH          # noqa: E402

OSD_SECONDS = int(os.environ.get('OSD_SECONDS', 7))
FIO = ('fio --name=v --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=24m --direct=1 '
       '--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog=256 '
       '--randrepeat=0 --minimal')
# Where fio does not write.
KEPT_AT, KEPT = 32, 8


class GuestFaults(FaultCase):
    timeout = 90 + OSD_SECONDS

    @classmethod
    def setUpClass(cls):
        with contextlib.ExitStack() as undo:
            try:
                reason = Cluster.available()
                if reason:
                    raise unittest.SkipTest(reason)
                super().setUpClass()
                cls.start(undo)
            except Unavailable as reason:
                raise unittest.SkipTest(str(reason)) from None
            cls.addClassCleanup(undo.pop_all().close)

    @classmethod
    def start(cls, undo):
        c = cls.cluster
        c.rbd('create', '--size', '64M', f'{POOL}/g')
        cls.t = spindle.Target('0x3', '--poll-us', '200')
        undo.callback(cls.t.cleanup)
        cls.t.start()
        cls.t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name='g', block_size=512, name='Ceph0',
                  user_id='spindle', config_file=c.conf, key_file=c.keyring('spindle'))
        cls.t.rpc('bdev_malloc_create', name='near', num_blocks=16 * MIB // 512, block_size=512)
        for ctrlr, bdev in (('v.g', 'Ceph0'), ('v.near', 'near')):
            cls.t.rpc('vhost_create_blk_controller', ctrlr=ctrlr, dev_name=bdev)
        cls.guest = Guest([Disk(cls.t.path('v.g'))], memory='memfd', size=384, smp=1)
        cls.guest.watch = cls.target_lives
        undo.callback(cls.guest.close)
        cls.guest.boot(timeout=90 * SLOW)
        cls.near = Neighbour(cls.t.path('v.near'))
        undo.callback(cls.near.stop)
        cls.kept = cls.guest.check(
            f'dd if=/dev/urandom of=/tmp/kept bs=1M count={KEPT} 2>/dev/null && '
            f'dd if=/tmp/kept of=/dev/vda bs=1M seek={KEPT_AT} oflag=direct 2>/dev/null && '
            'sha256sum </tmp/kept').split()[0]
        cls.near.take()
        time.sleep(1)
        cls.idle = cls.near.take()

    @classmethod
    def target_lives(cls):
        if not cls.t.running():
            raise AssertionError('the target died')

    def sh(self, script, timeout=60):
        return self.guest.check(script, timeout * SLOW)

    def started(self):
        """fio runs in the guest; (its ticket, the neighbour's figures beside it)."""
        self.sh('rm -f /tmp/enough; dmesg -c >/dev/null')
        ticket = self.guest.start(UNTIL_ENOUGH.format(fio=FIO))
        self.wait_served(200)
        return ticket, self.quiet(self.near, 1.5)

    def served(self):
        stat, = self.t.rpc('bdev_get_iostat', name='Ceph0')['bdevs']
        return stat['num_read_ops'] + stat['num_write_ops']

    def wait_served(self, more, seconds=60):
        """How long it took until that many more requests had been served."""
        goal, began = self.served() + more, time.monotonic()
        spindle.wait_until(lambda: self.served() >= goal, seconds, 'the disk to go on')
        return time.monotonic() - began

    def stands_still(self):
        """Nothing has been served for a second, and something waits."""
        before = self.served()
        time.sleep(1)
        return self.served() == before and self.health(self.t)['oldest_inflight_us'] > 1000000

    def finish(self, ticket):
        """fio goes on, reads back all it wrote and ends; nobody in the guest saw an error."""
        self.assertFalse(self.guest.done(ticket), 'fio ended by itself')
        took = self.wait_served(300)
        self.sh('touch /tmp/enough')
        rounds = self.guest.check_wait(ticket, 60 * SLOW, 'fio').split()[-1]
        self.assertEqual(self.sh(TROUBLE), '')
        self.assertEqual(self.kept_in_guest(), self.kept)
        self.note(f'300 requests {took:.1f} s later; fio {rounds}, no error')

    def kept_in_guest(self):
        return self.sh('blockdev --flushbufs /dev/vda; '
                       f'dd if=/dev/vda bs=1M skip={KEPT_AT} count={KEPT} 2>/dev/null '
                       '| sha256sum').split()[0]

    def test_1_osd_down(self):
        self.note('neighbour p50/p99/max with an idle guest '
                  f'{self.idle.p50}/{self.idle.p99}/{self.idle.max} us')
        ticket, quiet = self.started()
        began = time.monotonic()
        self.cluster.kill_osd()
        self.near.take()
        worst = self.watched(began + OSD_SECONDS - time.monotonic(), self.t)
        self.assertTrue(self.health(self.t)['stalled'])
        self.undisturbed(self.near, quiet, f'OSD down {OSD_SECONDS} s')
        self.cluster.start_osd()
        self.finish(ticket)
        self.note(f'slowest call meanwhile {worst * 1e3:.0f} ms')

    def test_2_monitor_down(self):
        """The guest does not even wait."""
        ticket, quiet = self.started()
        self.cluster.kill_mon()
        self.near.take()
        self.watched(3, self.t)
        self.wait_served(100, 20)
        self.undisturbed(self.near, quiet, 'monitor down')
        self.cluster.start_mon()
        self.finish(ticket)

    def test_3_cluster_full(self):
        """Writes wait for room."""
        ticket, quiet = self.started()
        self.ratios(0.0001, 0.0002, 0.0003)
        try:
            self.near.take()
            spindle.wait_until(self.stands_still, 30, 'writes to wait')
            self.watched(2, self.t)
            self.assertFalse(self.guest.done(ticket))
            self.undisturbed(self.near, quiet, 'cluster full')
        finally:
            self.ratios(0.85, 0.9, 0.95)
        self.finish(ticket)

    def test_4_fenced(self):
        """I/O errors, which fio reports as such; what was written before is what there is."""
        ticket, quiet = self.started()
        self.cluster.ceph('osd', 'blocklist', 'add', self.address('g'))
        self.near.take()
        status, out = self.guest.wait(ticket, 30 * SLOW)
        self.assertNotEqual(status, 0)
        self.assertRegex(out, 'err= *5')
        self.assertNotRegex(out, r'(?m)^verify:|err= *84|crc32c: ')
        self.watched(2, self.t)
        self.assertTrue(self.health(self.t)['fenced'])
        self.undisturbed(self.near, quiet, 'fenced')
        self.assertRegex(self.sh(TROUBLE), '(?i)i/o error')
        status, _ = self.guest.run('dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct')
        self.assertNotEqual(status, 0)
        out = self.cluster.dir + '/g.img'
        self.cluster.rbd('export', '--no-progress', f'{POOL}/g', out)
        data = pathlib.Path(out).read_bytes()[KEPT_AT * MIB:(KEPT_AT + KEPT) * MIB]
        self.assertEqual(hashlib.sha256(data).hexdigest(), self.kept)


if __name__ == '__main__':
    spindle.run_tests()
