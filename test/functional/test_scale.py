#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A hundred disks at once, what one costs, and that nothing is left of those that went."""
import os
import time

from vhostcase import (F, MIB, SLOW, WAIT, VhostCase, fd_count, memory_kib, spindle)

DISKS = 100


class Scale(VhostCase):
    @spindle.timeout(120)
    def test_a_hundred_controllers(self):
        cores = min(2, len(os.sched_getaffinity(0)))
        t = self.target('0x3' if cores > 1 else '0x1')
        self.disk(t, 'first', 'm0', mib=1)
        time.sleep(0.1)
        empty = memory_kib(t)
        for i in range(DISKS):
            self.null(t, f'n{i}', mib=1024)
        began = time.monotonic()
        for i in range(DISKS):
            self.ctrlr(t, f'c{i}', f'n{i}')
        took = time.monotonic() - began
        self.assertLess(took, 5 * SLOW)
        idle = memory_kib(t)
        fds = fd_count(t)
        fes = [self.connect(t.path(f'c{i}'), queues=2, mem_size=MIB, queue_size=64)
               for i in range(DISKS)]
        for fe in fes:
            for q in range(2):
                fe.read(0, 4096, q=q)
        attached = memory_kib(t)
        listed = t.rpc('vhost_get_controllers')
        self.assertEqual(len(listed), DISKS + 1)
        self.assertEqual(sum(c['sessions'][0]['started'] for c in listed if c['sessions']), DISKS)
        # All of them with requests in flight, by turns.
        gpa = [fe.alloc(4096, 4096) for fe in fes]
        for _ in range(20 // SLOW):
            for fe, at in zip(fes, gpa):
                for q in fe.q:
                    for _ in range(4):
                        q.submit(F.T_IN, 0, [(at, 512)])
            for fe in fes:
                for q in fe.q:
                    self.assertEqual({d.status for d in q.wait_all(4, WAIT)}, {F.S_OK})
        channels = [t.rpc('bdev_get_iostat', name=f'n{i}', per_channel=True)['channels']
                    for i in range(DISKS)]
        self.assertEqual({len(c) for c in channels}, {cores})

        def each(a, b):
            return ' + '.join(f'{(y - x) / DISKS:.1f} KiB {word}'
                              for x, y, word in zip(a, b, ('resident', 'huge')))

        print(f'     {DISKS} controllers in {took:.2f} s; an idle one costs {each(empty, idle)}; '
              f'with a front end of 2 queues of 64 {each(idle, attached)}')
        self.assertLess((idle[0] - empty[0]) / DISKS, 64 * SLOW)
        for fe in fes:
            fe.destroy()
        for i in range(DISKS):
            t.rpc('vhost_delete_controller', ctrlr=f'c{i}')
            t.rpc('bdev_null_delete', name=f'n{i}')
        self.assertEqual([c['ctrlr'] for c in t.rpc('vhost_get_controllers')], ['first'])
        self.check_fds(t, fds - DISKS)
        self.check_io(self.connect(t.path('first')))

    @spindle.timeout(120)
    def test_two_hundred_lives_of_a_controller(self):
        t = self.target('0x3')
        self.disk(t, 'keeper', 'keep', mib=1)

        def life(i):
            name = (self.malloc, self.null, self.file)[i % 3](t, f'b{i}', 1)
            path = self.ctrlr(t, f'c{i}', name)
            fe = self.connect(path, queues=1 + i % 2, mem_size=MIB, queue_size=16,
                              indirect=i % 2 == 0)
            fe.write(0, bytes(4096))
            if i % 4 == 0:
                fe.stop()
            if i % 5:
                fe.destroy()
            t.rpc('vhost_delete_controller', ctrlr=f'c{i}')
            fe.destroy()
            kind = name and ('malloc', 'null', 'uring')[i % 3]
            t.rpc(f'bdev_{kind}_delete', name=name)
            if kind == 'uring':
                os.unlink(t.path(name + '.img'))

        for i in range(40):
            life(i)
        fds, (resident, huge) = fd_count(t), memory_kib(t)
        for i in range(40, 240):
            life(i)
        spindle.wait_until(lambda: fd_count(t) <= fds, 3, 'fds of before')
        after, huge_after = memory_kib(t)
        self.assertLessEqual(huge_after, huge)
        # Sanitizers keep freed memory for a while.
        if not spindle.SANITIZER:
            self.assertLess(after - resident, 1024)
        self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs')], ['keep'])
        self.check_io(self.connect(t.path('keeper')))

    @spindle.timeout(120)
    def test_five_hundred_connections(self):
        t = self.target('0x3')
        path = self.disk(t)
        fds = fd_count(t)
        for i in range(100):
            self.connect(path, queues=2, mem_size=MIB, queue_size=16).destroy()
        self.wait_sessions(t, 0)
        # A session that is not listed any more may still be closing.
        self.check_fds(t, fds)
        resident, huge = memory_kib(t)
        for i in range(500 // SLOW):
            fe = self.connect(path, queues=2, mem_size=MIB, queue_size=16, indirect=True)
            fe.read(0, 512, q=i % 2)
            fe.destroy()
        self.wait_sessions(t, 0)
        self.check_fds(t, fds)
        after, huge_after = memory_kib(t)
        self.assertLessEqual(huge_after, huge)
        if not spindle.SANITIZER:
            self.assertLess(after - resident, 1024)


if __name__ == '__main__':
    spindle.run_tests()
