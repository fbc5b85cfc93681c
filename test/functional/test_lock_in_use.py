#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""lock_in_use: two targets have one image open, and one at a time uses it, as at a migration."""
import errno
import struct
import time

from takeovercase import POSITION, PREPARED, Peer, TakeoverCase
from vhostcase import MIB, WAIT, spindle


class InUse(TakeoverCase):
    def two(self):
        image = self.temp_dir() + '/image'
        with open(image, 'wb') as f:
            f.truncate(16 * MIB)
        targets = [self.target(), self.target()]
        for t in targets:
            t.rpc('bdev_uring_create', filename=image, name='f0', lock_in_use=True)
            self.ctrlr(t, 'c0', 'f0')
        return image, targets

    def waiting(self, t):
        """A front end whose first read waits for the image."""
        fe = self.connect(t.path('c0'), queues=2)
        with self.assertRaises(TimeoutError):
            fe.read(0, 512, timeout=0.2)
        t.wait_log('waits until no other process uses f0')
        return fe

    def test_the_lock_goes_with_the_rings(self):
        image, (a, b) = self.two()
        fe = self.connect(a.path('c0'), queues=2)
        self.check_io(fe, seed=1)
        other = self.waiting(b)
        # Anybody else is kept off all the same.
        self.rpc_fails(self.target(), -errno.EBUSY, 'bdev_uring_create', None, filename=image,
                       name='x')
        self.check_io(fe, q=1, sector=64, seed=2)
        for q in fe.q:
            q.stop()
        self.assertEqual(len(other.q[0].wait_all(1, WAIT)), 1)
        self.check_io(other, q=1, sector=128, seed=3)
        other.destroy()
        self.wait_sessions(b, 0)
        # Nobody uses it now.
        t = self.target()
        self.assertEqual(t.rpc('bdev_uring_create', filename=image, name='x'), 'x')

    def test_a_killed_user(self):
        _, (a, b) = self.two()
        self.check_io(self.connect(a.path('c0')))
        other = self.waiting(b)
        a.kill()
        self.assertEqual(len(other.q[0].wait_all(1, WAIT)), 1)
        self.check_io(other, seed=3)

    def test_a_waiting_ring_is_taken_over(self):
        _, (a, b) = self.two()
        fe = self.connect(a.path('c0'), queues=2)
        self.check_io(fe)
        other = self.waiting(b)
        # Its successor knows that it has waited: the front end may have to be told.
        peer = Peer.successor(b)
        self.addCleanup(peer.close)
        peer.batch()
        peer.send(PREPARED)
        waits = [struct.unpack('<IIIBB2x', body)[4] for kind, body in peer.batch()
                 if kind == POSITION]
        self.assertEqual(waits, [1, 1])
        peer.close()
        self.wait_kept(b)
        s = self.take_over(b)
        s.wait_log('waits until no other process uses f0')
        self.assertEqual(other.q[0].poll(), [])
        self.check_io(fe, seed=1)
        for q in fe.q:
            q.stop()
        self.assertEqual(len(other.q[0].wait_all(1, WAIT)), 1)
        self.check_io(other, q=1, sector=64, seed=2)

    def test_saved(self):
        _, (a, _) = self.two()
        saved = a.rpc('framework_get_config', name='bdev')
        self.assertEqual([c['params'].get('lock_in_use') for c in saved], [True])


class AfterATakeover(TakeoverCase):
    """No lock is left behind where no ring has come for it."""

    def disk_in_use(self):
        image = self.temp_dir() + '/image'
        with open(image, 'wb') as f:
            f.truncate(16 * MIB)
        t = self.target()
        t.rpc('bdev_uring_create', filename=image, name='f0', lock_in_use=True)
        fe = self.connect(self.ctrlr(t, 'c0', 'f0'))
        self.check_io(fe)
        return image, t, fe

    def may_be_opened(self, image):
        other = self.target()

        def opened():
            try:
                return other.rpc('bdev_uring_create', filename=image, name='x')
            except spindle.RpcError:
                return None
        self.assertEqual(spindle.wait_until(opened, WAIT, 'the lock to go'), 'x')

    def test_given_up_when_the_front_end_had_gone(self):
        image, t, fe = self.disk_in_use()
        peer = Peer.successor(t)
        peer.batch()
        fe.destroy()
        time.sleep(0.2)
        peer.close()
        self.wait_kept(t)
        self.wait_sessions(t, 0)
        self.may_be_opened(image)

    def test_a_ring_that_its_driver_broke(self):
        image, t, fe = self.disk_in_use()
        fe.q[0].push_head(60000)
        self.assertGreater(fe.q[0].error(WAIT), 0)
        s = self.take_over(t)
        fe.destroy()
        self.wait_sessions(s, 0)
        self.may_be_opened(image)


if __name__ == '__main__':
    spindle.run_tests()
