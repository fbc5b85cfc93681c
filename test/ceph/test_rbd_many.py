#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Many images on one target: what they cost, that nothing grows, and that making them does not
hold up a disk that is at work."""
import os
import subprocess
import time

from ceph import CephCase, POOL, SLOW, spindle
from vhostcase import fd_count, memory_kib

IMAGES = 64
ROUNDS = int(os.environ.get('ROUNDS', 1000)) // (1 if SLOW == 1 else 4)
BATCH = 300 // (1 if SLOW == 1 else 4)

MAKE = '''
import rados, rbd, sys
cluster = rados.Rados(conffile=sys.argv[1], name='client.admin')
cluster.connect()
ioctx = cluster.open_ioctx(sys.argv[2])
for i in range(int(sys.argv[3])):
    rbd.RBD().create(ioctx, f'n{i}', 4 << 20)
'''


def threads(t):
    return len(os.listdir(f'/proc/{t.pid}/task'))


class Many(CephCase):
    timeout = 240

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        subprocess.run(['/usr/bin/python3', '-c', MAKE, cls.cluster.conf, POOL,
                        str(max(BATCH, IMAGES))], check=True, timeout=120)

    def figures(self, t):
        return threads(t), fd_count(t), memory_kib(t)[0] // 1024

    def settled(self, t):
        """Figures once closing in the background is over."""
        def same():
            a = self.figures(t)
            time.sleep(0.5)
            b = self.figures(t)
            return b if a[:2] == b[:2] else None
        return spindle.wait_until(same, 30, 'the figures to settle', 0.1)

    def batch(self, t, calls, timeout=120):
        """All calls in one batch on a connection of their own; the answers by id."""
        requests = [{'jsonrpc': '2.0', 'id': i, 'method': m, 'params': p}
                    for i, (m, p) in enumerate(calls)]
        with t.raw(timeout) as raw:
            raw.send(requests)
            answers = raw.recv(timeout)
        self.assertEqual(len(answers), len(calls))
        bad = [a for a in answers if 'error' in a]
        self.assertEqual(bad[:3], [])

    def creates(self, count):
        return [('bdev_rbd_create', {'pool_name': POOL, 'rbd_name': f'n{i}', 'block_size': 512,
                                     'name': f'd{i}', **self.access()}) for i in range(count)]

    def deletes(self, count):
        return [('bdev_rbd_delete', {'name': f'd{i}'}) for i in range(count)]

    def test_64_images(self):
        """Threads, memory and file descriptors, and that each of them works."""
        for connections in (1, 2):
            t = self.target('0x1', '--poll-us', '100', '--rbd-connections', connections)
            before = self.settled(t)
            began = time.monotonic()
            self.batch(t, self.creates(IMAGES))
            took = time.monotonic() - began
            opened = self.settled(t)
            for i in range(IMAGES):
                self.ctrlr(t, f'c{i}', f'd{i}')
            for i in range(0, IMAGES, 9):
                fe = self.connect(t.path(f'c{i}'))
                self.check_io(fe, seed=i)
                fe.destroy()
            used = self.settled(t)
            self.note(f'{connections} connections, {IMAGES} images, opened in {took:.2f} s: '
                      'threads %d -> %d -> %d, fds %d -> %d -> %d, MiB %d -> %d -> %d'
                      % sum(zip(before, opened, used), ()))
            self.assertLess(opened[0], before[0] + 64 + 40 * connections)
            for i in range(IMAGES):
                t.rpc('vhost_delete_controller', ctrlr=f'c{i}')
            self.batch(t, self.deletes(IMAGES))
            after = self.settled(t)
            self.note('after all are deleted: threads %d, fds %d, MiB %d' % after)
            self.assertLessEqual(after[1], before[1] + 4)
            took = t.stop()
            self.note(f'SIGTERM: {took:.2f} s')

    def test_no_growth(self):
        t = self.target('0x1', '--poll-us', '100')
        # One that stays keeps the connection, so that the rounds are quick.
        self.batch(t, self.creates(1))

        def rounds(count):
            for _ in range(count):
                t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name='n1', block_size=512, name='x',
                      **self.access())
                t.rpc('bdev_rbd_delete', name='x')

        rounds(ROUNDS // 5)
        warm = self.settled(t)
        began = time.monotonic()
        rounds(ROUNDS)
        took = time.monotonic() - began
        end = self.settled(t)
        self.note(f'{ROUNDS} rounds of create and delete, {took / ROUNDS * 1e3:.1f} ms each: '
                  'threads %d -> %d, fds %d -> %d, MiB %d -> %d' % sum(zip(warm, end), ()))
        self.assertLessEqual(end[0], warm[0] + 2)
        self.assertLessEqual(end[1], warm[1] + 1)
        if not spindle.SANITIZER:
            self.assertLess(end[2], warm[2] + 8 + ROUNDS // 100)

    def test_no_growth_of_connections(self):
        t = self.target('0x1', '--poll-us', '100')
        count = ROUNDS // 25

        def rounds(n):
            for _ in range(n):
                t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name='n1', block_size=512, name='x',
                      **self.access())
                t.rpc('bdev_rbd_delete', name='x')
                spindle.wait_until(lambda: not self.connected(t), 10, 'the connection to end')

        rounds(count)
        warm = self.settled(t)
        rounds(count)
        end = self.settled(t)
        self.note(f'{count} rounds with a connection each: '
                  'threads %d -> %d, fds %d -> %d, MiB %d -> %d' % sum(zip(warm, end), ()))
        self.assertLessEqual(end[0], warm[0] + 2)
        self.assertLessEqual(end[1], warm[1] + 1)
        if not spindle.SANITIZER:
            self.assertLess(end[2], warm[2] + 16)

    def connected(self, t):
        for task in os.listdir(f'/proc/{t.pid}/task'):
            try:
                with open(f'/proc/{t.pid}/task/{task}/comm') as f:
                    if f.read().startswith('ms_dispatch'):
                        return True
            except OSError:
                pass
        return False

    def test_batch_beside_another_disk(self):
        """A batch of creates: the other disk's worst request, and the slowest other call."""
        t = self.target('0x1', '--poll-us', '1000')
        neighbour = self.neighbour(t)
        # The same load on a target that creates nothing tells what the machine itself does.
        other = self.neighbour(self.target('0x1', '--poll-us', '1000'))
        neighbour.take()
        time.sleep(2)
        quiet = neighbour.take()
        other.take()
        calls = self.creates(BATCH)
        began, worst = time.monotonic(), 0.0
        with t.raw(120) as raw:
            raw.send([{'jsonrpc': '2.0', 'id': i, 'method': m, 'params': p}
                      for i, (m, p) in enumerate(calls)])
            answers = None
            while answers is None:
                at = time.monotonic()
                t.rpc('spdk_get_version')
                worst = max(worst, time.monotonic() - at)
                try:
                    answers = raw.recv(0.02 / SLOW)
                except TimeoutError:
                    pass
                self.assertLess(time.monotonic() - began, 120 * SLOW)
        took = time.monotonic() - began
        busy, idle = neighbour.take(), other.take()
        self.assertEqual([a for a in answers if 'error' in a][:3], [])
        self.note(f'{BATCH} creates in {took:.2f} s; neighbour p50/p99/max {busy.p50}/{busy.p99}/'
                  f'{busy.max} us; of a target beside it {idle.p50}/{idle.p99}/{idle.max} us; '
                  f'quiet {quiet.p50}/{quiet.p99}/{quiet.max} us; slowest other call '
                  f'{worst * 1e3:.1f} ms')
        self.assertEqual(busy.bad, 0)
        # The aim is 10 ms, but a busy machine by itself stalls a process for longer.
        self.assertLess(busy.max, max(100000, 4 * quiet.max, 4 * idle.max) * SLOW)
        self.assertLess(worst, 0.3 * SLOW)
        self.assertEqual(len(t.rpc('bdev_get_bdevs')), BATCH + 1)
        began = time.monotonic()
        self.batch(t, self.deletes(BATCH))
        self.note(f'deleted in {time.monotonic() - began:.2f} s')
        self.assertEqual(len(t.rpc('bdev_get_bdevs')), 1)


if __name__ == '__main__':
    spindle.run_tests()
