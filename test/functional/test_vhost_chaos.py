#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Everything at once, in random order: front ends that start, stop, change, break and vanish while
disks are delayed, stuck, failed, resized, deleted and made again. Whatever happens, each answer
comes in time, and in the end everything can be taken down and nothing is left.

SEED=n repeats a run; SECONDS=n makes it longer."""
import os
import random
import resource
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, fd_count, spindle

SEED = int(os.environ.get('SEED', '0')) or random.SystemRandom().randrange(1, 1 << 30)
SECONDS = float(os.environ.get('SECONDS', '3'))


class Guest:
    """A front end, restarted when it has lost its connection."""

    def __init__(self, case, path, rng):
        self.case, self.path, self.rng = case, path, rng
        self.fe = None
        self.queues = rng.choice((1, 2, 4))
        self.extra = []

    def connect(self):
        rng = self.rng
        style = rng.choice(list(F.STYLES))
        fe = F.Frontend(style=style, queues=self.queues, queue_size=rng.choice((16, 64)),
                        mem_size=2 * MIB, timeout=WAIT, indirect=rng.random() < 0.5,
                        event_idx=rng.random() < 0.5, skip_drain=rng.random() < 0.5)
        fe.open(self.path)
        fe.start()
        self.fe, self.extra = fe, []
        self.gpa = fe.alloc(65536, 4096)

    def drop(self):
        if self.fe:
            self.fe.destroy()
        self.fe = None

    def step(self):
        if not self.fe:
            if os.path.exists(self.path):
                self.connect()
            return
        fe, rng = self.fe, self.rng
        q = rng.choice(fe.q)
        action = rng.choices((self.submit, self.reap, self.restart, self.toggle, self.swap,
                              self.memory, self.config, self.reset, self.vanish, self.hurt),
                             (30, 20, 6, 4, 6, 6, 3, 1, 1, 1))[0]
        action(fe, q)

    def submit(self, fe, q):
        rng = self.rng
        for _ in range(rng.randrange(1, 12)):
            if q.num_free < 6:
                break
            rtype = rng.choice((F.T_IN, F.T_IN, F.T_OUT, F.T_OUT, F.T_FLUSH))
            segs = [] if rtype == F.T_FLUSH else [
                (self.gpa + 512 * rng.randrange(64), 512 * rng.randrange(1, 9))
                for _ in range(rng.randrange(1, 4))]
            q.submit(rtype, rng.randrange(4000), segs)

    def reap(self, fe, q):
        q.poll()

    def settle(self, fe, q):
        """Messages that wait for a ring's requests: only where none can be stuck."""
        return not self.case.stuck

    def restart(self, fe, q):
        if self.settle(fe, q):
            base = q.stop()
            q.poll()
            q.start(base)
            q.enable(True)

    def toggle(self, fe, q):
        if self.settle(fe, q):
            q.enable(False)
            q.enable(True)
            fe.get_features()       # through, before an operator lets anything get stuck

    def swap(self, fe, q):
        if self.rng.random() < 0.7:
            q.swap_call()
        elif self.settle(fe, q):
            q.swap_kick()
            fe.get_features()

    def memory(self, fe, q):
        if self.extra and self.settle(fe, q):
            fe.remove_region(self.extra.pop())
        elif len(self.extra) < 3:
            # Not a place that was used: its number stays taken.
            at = (1 << 32) + fe.c.num_regions * MIB
            if fe.c.num_regions < 200:
                self.extra.append(fe.add_region(F.region(at, MIB)))

    def config(self, fe, q):
        fe.set_config(32, bytes([self.rng.randrange(2)]))
        fe.get_config(0, self.rng.randrange(1, 257))

    def reset(self, fe, q):
        if self.settle(fe, q):
            fe.reset_device()
            fe.get_features()
            for queue in fe.q:
                queue.reset()
            fe.start_rings()

    def vanish(self, fe, q):
        if self.rng.random() < 0.3:
            os.ftruncate(fe.region_fd(0), 0)
            os.eventfd_write(q.kick_fd, 1)
            time.sleep(self.rng.random() / 1000)
        self.drop()

    def hurt(self, fe, q):
        q.push_head(self.rng.randrange(0x10000))


class Chaos(VhostCase):
    def stack(self, name):
        """Controller c<name> on error on delay on malloc or a file."""
        t = self.t
        base = (self.malloc if self.rng.random() < 0.7 else self.file)(t, 'b' + name, 4)
        top = self.error(t, self.delay(t, base, self.rng.choice((0, 100, 3000)), 'd' + name))
        self.ctrlr(t, 'c' + name, top)

    def unstack(self, name):
        t = self.t
        order = [('bdev_error_delete', 'EE_d' + name), ('bdev_delay_delete', 'd' + name)]
        if self.rng.random() < 0.5:
            t.rpc('vhost_delete_controller', ctrlr='c' + name)
            order.append(None)
        for step in order:
            if step:
                t.rpc(step[0], name=step[1])
        if None not in order:
            t.rpc('vhost_delete_controller', ctrlr='c' + name)
        base = t.rpc('bdev_get_bdevs', name='b' + name)[0]['driver_specific']
        kind = 'uring' if 'uring' in base else 'malloc'
        t.rpc(f'bdev_{kind}_delete', name='b' + name)

    def operate(self):
        """One thing an operator does."""
        t, rng = self.t, self.rng
        name = rng.choice(self.names)
        what = rng.randrange(12)
        if what == 0 and rng.random() < 0.5:
            self.unstack(name)
            self.stack(name)
        elif what == 1:
            self.inject(t, 'EE_d' + name, rng.choice(('read', 'write', 'all')), 'pending',
                        num=rng.randrange(1, 9))
            self.stuck = True
        elif what in (2, 3, 4):
            for each in self.names:
                self.inject(t, 'EE_d' + each, 'clear', 'clear')
            self.stuck = False
        elif what == 5:
            self.inject(t, 'EE_d' + name, 'all', 'failure', num=rng.randrange(5))
        elif what == 6:
            t.rpc('vhost_controller_set_coalescing', ctrlr='c' + name,
                  delay_base_us=rng.choice((0, 100)), iops_threshold=60000)
        elif what == 7:
            t.rpc('bdev_delay_update_latency', delay_bdev_name='d' + name,
                  latency_type='avg_write', latency_us=rng.choice((0, 200, 2000)))
        else:
            t.rpc(rng.choice(('vhost_get_controllers', 'bdev_get_iostat', 'bdev_get_bdevs',
                              'thread_get_stats', 'thread_get_io_channels')))

    def chaos(self, *args):
        print(f'     SEED={SEED}')
        self.rng = rng = random.Random(SEED)
        self.t = t = self.target('0x3', *args)
        self.stuck = False
        self.names = ['x', 'y']
        before = fd_count(t)
        for name in self.names:
            self.stack(name)
        guests = [Guest(self, t.path('c' + rng.choice(self.names)), rng) for _ in range(6)]
        steps, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            steps += 1
            if rng.random() < 0.05:
                self.operate()
                continue
            guest = rng.choice(guests)
            try:
                guest.step()
            except OSError as e:
                # It may have lost its connection with good reason; it may not wait in vain.
                self.assertNotEqual(e.errno, F.errno.ETIMEDOUT, f'step {steps}')
                guest.drop()
        for name in self.names:
            self.inject(t, 'EE_d' + name, 'clear', 'clear')
        for guest in guests:
            guest.drop()
        for name in self.names:
            self.check_io(self.connect(t.path('c' + name)))
            self.unstack(name)
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        spindle.wait_until(lambda: fd_count(t) <= before, 3, 'fds of before')
        self.assertGreater(steps, 100)

    def test_polling(self):
        self.chaos()

    def test_sleeping(self):
        self.chaos('--interrupt-mode')

    def test_adaptive(self):
        self.chaos('--poll-us', '50')


class Exhaustion(VhostCase):
    def test_no_fds_left(self):
        # A front end that cannot be accepted waits; it is not turned away.
        t = self.target()
        path = self.disk(t)
        keeper = self.connect(path)
        self.check_io(keeper)
        old = resource.prlimit(t.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(t.pid, resource.RLIMIT_NOFILE, (fd_count(t), old[1]))
        try:
            fe = self.connect(path, no_start=True)
            fe.send_raw(F.GET_FEATURES)
            self.assertTrue(fe.quiet(0.3))
            self.check_io(keeper)
            t.rpc('vhost_get_controllers')
            self.assertLess(len(t.log().splitlines()), 40)
        finally:
            resource.prlimit(t.pid, resource.RLIMIT_NOFILE, old)
        self.assertEqual(fe.recv(WAIT).request, F.GET_FEATURES)
        fe.start()
        self.check_io(fe)

    def test_fds_running_out_at_any_point(self):
        t = self.target()
        path = self.disk(t)
        self.connect(path, no_start=True).destroy()
        self.wait_sessions(t, 0)
        base = fd_count(t)
        old = resource.prlimit(t.pid, resource.RLIMIT_NOFILE)
        for room in range(1, 16):
            resource.prlimit(t.pid, resource.RLIMIT_NOFILE, (base + room, old[1]))
            try:
                fe = F.Frontend.connect(path, timeout=0.5 * SLOW, queues=2, mem_size=MIB,
                                        queue_size=16)
                fe.destroy()
            except OSError:
                pass
            resource.prlimit(t.pid, resource.RLIMIT_NOFILE, old)
            self.check_fds(t, base)
        self.check_io(self.connect(path))


if __name__ == '__main__':
    spindle.run_tests()
