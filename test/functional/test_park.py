#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Idle queues leave the polling set and come back when they are kicked, on a reactor that polls."""
import os
import time

from takeovercase import TakeoverCase
from vhostcase import F, MIB, SLOW, WAIT, pattern, spindle, wait_called

KINDS = ({}, {'event_idx': True}, {'packed': True}, {'packed': True, 'event_idx': True})


class ParkCase(TakeoverCase):
    def pollers(self, t):
        """(polled, parked) by name."""
        polled, parked = [], []
        for thread in t.rpc('thread_get_pollers')['threads']:
            polled += [p['name'] for p in thread['active_pollers']]
            parked += [p['name'] for p in thread['paused_pollers']]
        return polled, parked

    def wait_parked(self, t, count):
        spindle.wait_until(lambda: len(self.pollers(t)[1]) == count, 10 * SLOW,
                           f'{count} parked queues')

    def packed_disk(self, t, **params):
        return self.disk(t, packed_ring=True, **params)


class Parking(ParkCase):
    def test_comes_back_at_a_kick(self):
        for opts in KINDS:
            with self.subTest(opts=opts):
                t = self.target('0x1')
                fe = self.connect(self.packed_disk(t), queues=2, **opts)
                for i in range(10):
                    self.wait_parked(t, 2)
                    self.check_io(fe, q=i % 2, seed=i, sector=8 * i)
                    kicks = fe.q[i % 2].kicks
                    self.assertGreater(kicks, 0)
                # Only a kick, and only its call, by many requests at once.
                for i in range(10):
                    self.wait_parked(t, 2)
                    gpa = fe.alloc(4096, 4096)
                    for _ in range(8):
                        fe.q[0].submit(F.T_IN, 8 * i, [(gpa, 4096)])
                    done = wait_called(fe.q[0], 8)
                    self.assertEqual({d.status for d in done}, {F.S_OK})
                    self.assertEqual(bytes(fe.memory(gpa, 4096)), pattern(4096, i))
                fe.destroy()
                t.stop()

    def test_no_kick_fd_is_polled(self):
        t = self.target('0x1')
        path = self.disk(t)
        fe = self.connect(path, no_kick_fd=True)
        also = self.connect(path)
        self.wait_parked(t, 1)
        for i in range(5):
            self.check_io(fe, seed=i)
            self.assertEqual(len(self.pollers(t)[0]), 1)
            self.wait_parked(t, 1)
        self.check_io(also)

    def test_kicks_that_never_come(self):
        # Late, but served; and in the end it is polled for good.
        for opts in KINDS:
            with self.subTest(opts=opts):
                t = self.target('0x1')
                fe = self.connect(self.packed_disk(t), **opts)
                gpa = fe.alloc(4096, 4096)
                for _ in range(8):
                    self.wait_parked(t, 1)
                    fe.q[0].submit(F.T_IN, 0, [(gpa, 4096)], how=F.HOW_NO_KICK)
                    self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
                spindle.wait_until(lambda: self.pollers(t)[0], 5 * SLOW, 'a polled queue')
                fe.q[0].submit(F.T_IN, 0, [(gpa, 4096)], how=F.HOW_NO_KICK)
                self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
                t.stop()

    def test_kicks_that_nobody_asked_for(self):
        # They cost the reactor a system call each: it stops listening, and polls the queue.
        t = self.target('0x1')
        fe = self.connect(self.disk(t))
        self.wait_parked(t, 1)
        gpa = fe.alloc(4096, 4096)

        def storm():
            for _ in range(3000):
                fe.q[0].submit(F.T_IN, 0, [(gpa, 512)])
                os.eventfd_write(fe.q[0].kick_fd, 1)
                fe.q[0].wait_all(1, WAIT)
            time.sleep(0.1)
            return self.pollers(t)[0]

        spindle.wait_until(storm, 20 * SLOW, 'a queue that is not parked')
        self.check_io(fe)
        other = self.connect(t.path('c0'))
        self.wait_parked(t, 1)
        self.check_io(other)

    def test_two_hundred(self):
        t = self.target('0x1')
        fes = []
        for i in range(200 // SLOW):
            self.malloc(t, f'm{i}', 1)
            path = self.ctrlr(t, f'c{i}', f'm{i}', packed_ring=True)
            fes.append(self.connect(path, mem_size=MIB, queue_size=64, **KINDS[i % 4]))
        for i, fe in enumerate(fes):
            fe.write(8 * (i % 16), pattern(4096, i), timeout=WAIT)
        self.wait_parked(t, len(fes))
        for i, fe in reversed(list(enumerate(fes))):
            self.assertEqual(fe.read(8 * (i % 16), 4096, timeout=WAIT), pattern(4096, i))
        self.wait_parked(t, len(fes))
        # All at once.
        gpa = [fe.alloc(4096, 4096) for fe in fes]
        for i, fe in enumerate(fes):
            fe.q[0].submit(F.T_IN, 8 * (i % 16), [(gpa[i], 4096)])
        for i, fe in enumerate(fes):
            self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
            self.assertEqual(bytes(fe.memory(gpa[i], 4096)), pattern(4096, i))

    def test_the_end_of_a_parked_queue(self):
        t = self.target('0x1')
        path = self.packed_disk(t)
        for opts in KINDS:
            with self.subTest(opts=opts):
                fe = self.connect(path, style='qemu11', queues=2, **opts)
                self.check_io(fe)
                self.wait_parked(t, 2)
                base = fe.q[0].stop()
                self.wait_parked(t, 1)
                # Made available while it is stopped: no kick tells of it.
                fe.q[0].submit(F.T_FLUSH, 0, how=F.HOW_NO_KICK)
                fe.q[0].start(base)
                fe.q[0].enable(True)
                self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
                self.wait_parked(t, 2)
                fe.q[1].enable(False)
                self.wait_parked(t, 1)
                fe.q[1].enable(True)
                self.wait_parked(t, 2)
                fe.q[0].swap_call()
                fe.q[0].swap_kick()
                self.wait_parked(t, 2)
                self.check_io(fe, q=0)
                self.check_io(fe, q=1)
                self.wait_parked(t, 2)
                fe.reset_device()
                self.wait_parked(t, 0)
                fe.close()
                self.wait_sessions(t, 0)
                fe.destroy()
        fe = self.connect(path)
        self.check_io(fe)
        self.wait_parked(t, 1)
        t.rpc('bdev_malloc_delete', name='m0')
        self.wait_parked(t, 1)
        self.check_fails(F.S_IOERR, fe.read, 0, 512)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.wait_parked(t, 0)

    def test_broken_while_parked(self):
        t = self.target('0x1')
        fe = self.connect(self.disk(t))
        self.check_io(fe)
        self.wait_parked(t, 1)
        fe.q[0].push_head(500)
        fe.q[0].kick()
        self.assertEqual(fe.q[0].error(WAIT), 1)
        self.assertEqual(self.pollers(t), ([], []))
        fe.q[0].stop()

    def test_taken_over_while_parked(self):
        t = self.target('0x1')
        path = self.packed_disk(t)
        fes = [self.connect(path, **opts) for opts in KINDS]
        for i, fe in enumerate(fes):
            fe.write(8 * i, pattern(4096, i))
        self.wait_parked(t, len(fes))
        s = self.take_over(t)
        self.wait_parked(s, len(fes))
        for i, fe in enumerate(fes):
            self.assertEqual(fe.read(8 * i, 4096, timeout=WAIT), pattern(4096, i))
        self.wait_parked(s, len(fes))


if __name__ == '__main__':
    spindle.run_tests()
