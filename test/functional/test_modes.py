#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Sleeping: --interrupt-mode and --poll-us. Idle it costs next to nothing, and no wake-up is ever
lost: by a kick, a message, a completion or a timer."""
import glob
import os
import random
import threading
import time

from vhostcase import F, SLOW, VhostCase, cpu_seconds, spindle, wait_called

MODES = (('--interrupt-mode',), ('--poll-us', '1'), ('--poll-us', '50'), ('--poll-us', '1000'))
BOUND = 5.0 * SLOW      # for one request


def sqpoll_threads(t):
    """The cores that each thread of the kernel that submits for the target may use."""
    cores = []
    for status in glob.glob(f'/proc/{t.pid}/task/*/status'):
        with open(status) as f:
            fields = dict(line.rstrip('\n').split(':\t', 1) for line in f if ':\t' in line)
        if fields['Name'].startswith('iou-sqp'):
            cores.append(fields['Cpus_allowed_list'])
    return cores


class Idle(VhostCase):
    def share(self, t, seconds=1.0):
        """CPU time used per second."""
        began, before = time.monotonic(), cpu_seconds(t)
        time.sleep(seconds)
        return (cpu_seconds(t) - before) / (time.monotonic() - began)

    def test_costs_next_to_nothing(self):
        for args in MODES:
            with self.subTest(args=args):
                t = self.target('0x3', *args)
                path = self.disk(t)
                fe = self.connect(path, queues=4)
                also = self.connect(path, event_idx=True)
                for q in range(4):
                    self.check_io(fe, q=q)
                self.check_io(also)
                time.sleep(0.1)
                self.assertLess(self.share(t), 0.05)
                self.check_io(fe)
                reactors = t.rpc('framework_get_reactors')['reactors']
                self.assertEqual(len(reactors), 2)
                t.stop()

    def test_after_every_kind_of_work(self):
        # Work that is over leaves nothing that keeps a reactor awake.
        t = self.target('0x1', '--poll-us', '100')
        path = self.ctrlr(t, 'c0', self.error(t, self.delay(t, self.file(t), 2000)))
        fe = self.connect(path, queues=2, style='qemu11')
        self.check_io(fe)
        fe.flush()
        fe.discard([(0, 8)])
        fe.q[1].swap_call()
        fe.q[1].swap_kick()
        self.check_io(fe, q=1)
        fe.q[0].push_head(500)      # broken
        fe.q[0].kick()
        self.assertEqual(fe.q[0].error(BOUND), 1)
        self.assertLess(self.share(t), 0.05)
        fe.q[0].stop()
        fe.q[1].enable(False)
        self.assertLess(self.share(t, 0.5), 0.05)
        fe.destroy()
        self.wait_sessions(t, 0)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.assertLess(self.share(t, 0.5), 0.05)

    def test_a_pending_request_costs_nothing(self):
        t = self.target('0x1', '--interrupt-mode')
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        self.inject(t, name, 'flush', 'pending')
        fe.q[0].submit(F.T_FLUSH, 0)
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 1, 2, 'in flight')
        self.assertLess(self.share(t), 0.05)
        self.inject(t, name, 'clear', 'clear')
        self.assertEqual(fe.q[0].wait_all(1, BOUND)[0].status, F.S_IOERR)

    def test_polling_is_the_default(self):
        t = self.target()
        # A sleeping one takes a thousandth; a loaded machine leaves this one less than all.
        self.assertGreater(self.share(t, 0.5), 0.05)

    def test_hostile_kick_fd_spins_nothing_for_ever(self):
        # A kick fd that is always readable must not hang the others, nor lose their kicks.
        t = self.target('0x1', '--interrupt-mode')
        path = self.disk(t)
        other = self.connect(path)
        fe = self.connect(path, style='qemu11')
        readable, end = os.pipe()
        os.write(end, b'x')
        hung_up, gone = os.pipe()
        os.close(gone)
        for fd in (readable, hung_up):
            fe.set_vring_fd(F.SET_VRING_KICK, 0, fd)
            for i in range(20):
                self.check_io(other, seed=i)
                fe.q[0].submit(F.T_FLUSH, 0)
                os.write(end, b'x')     # never read: the pipe stays readable
                self.assertEqual(fe.q[0].wait_all(1, BOUND)[0].status, F.S_OK)
        for fd in (readable, end, hung_up):
            os.close(fd)
        fe.destroy()
        self.wait_sessions(t, 1)
        self.assertLess(self.share(t, 0.5), 0.05)


class WakeUp(VhostCase):
    def requests_with_pauses(self, fe, queue, count, poll_us, seed):
        """Single requests, woken by the call fd only, with pauses around the time at which the
        reactor falls asleep. -> the longest time that one took"""
        rng = random.Random(seed)
        q = fe.q[queue]
        gpa = fe.alloc(4096, 4096)
        worst = 0
        for i in range(count):
            pause = rng.choice((0, rng.random() * 2, 1, rng.random() * 4)) * poll_us / 1e6
            until = time.perf_counter() + min(pause, 0.002)
            while time.perf_counter() < until:
                pass
            if rng.random() < 0.02:
                time.sleep(0.001)
            began = time.monotonic()
            q.submit(F.T_IN if i % 3 else F.T_OUT, i % 64, [(gpa, 512)], cookie=i)
            done = wait_called(q, 1, BOUND)
            worst = max(worst, time.monotonic() - began)
            self.assertEqual([(d.cookie, d.status) for d in done], [(i, F.S_OK)])
        return worst

    def stress(self, args, poll_us, count=3000, **opts):
        """Two queues driven by two threads, one more beside them calling RPC."""
        t = self.target('0x3' if len(os.sched_getaffinity(0)) > 1 else '0x1', *args)
        path = self.disk(t)
        fe = self.connect(path, queues=2, **opts)
        count //= SLOW
        failures, stop = [], threading.Event()

        def drive(queue):
            try:
                self.requests_with_pauses(fe, queue, count, poll_us, queue)
            except BaseException as e:      # told by the main thread
                failures.append(f'queue {queue}: {e}')

        def call():
            try:
                with spindle.RpcSocket(t.sock, timeout=BOUND) as rpc:
                    while not stop.wait(0.001):
                        rpc.call('bdev_get_iostat', {'name': 'm0'})
                        rpc.call('framework_get_reactors')
                        rpc.call('thread_get_stats')
            except BaseException as e:
                failures.append(f'rpc: {e}')

        fe.alloc(4096)
        threads = [threading.Thread(target=drive, args=(q,)) for q in range(2)]
        caller = threading.Thread(target=call)
        for thread in threads + [caller]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        caller.join()
        self.assertEqual(failures, [])

    def test_interrupt_mode(self):
        self.stress(('--interrupt-mode',), 50)

    def test_interrupt_mode_event_idx(self):
        self.stress(('--interrupt-mode',), 50, event_idx=True)

    def test_poll_us(self):
        self.stress(('--poll-us', '30'), 30)

    def test_poll_us_event_idx(self):
        self.stress(('--poll-us', '30'), 30, event_idx=True, indirect=True)

    def test_poll_us_long(self):
        self.stress(('--poll-us', '200'), 200, count=1000, event_idx=True)

    def test_polling_for_comparison(self):
        self.stress((), 30, event_idx=True)

    def test_no_kick_fd(self):
        # Nobody can wake it, so it must not sleep.
        t = self.target('0x1', '--interrupt-mode')
        fe = self.connect(self.disk(t), no_kick_fd=True, event_idx=True)
        for i in range(200):
            self.check_io(fe, seed=i)
            if i % 20 == 0:
                time.sleep(0.005)

    def test_completions_of_files(self):
        for kind in ('uring', 'aio'):
            t = self.target('0x1', '--interrupt-mode')
            fe = self.connect(self.ctrlr(t, 'c0', self.file(t, kind=kind)), event_idx=True)
            for i in range(200):
                self.check_io(fe, seed=i, sector=8 * i)
                if i % 10 == 0:
                    fe.flush()
            t.stop()

    def test_timers(self):
        # Nothing but the timer of the delay can wake the reactor.
        for args in MODES:
            t = self.target('0x1', *args)
            fe = self.connect(self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 20000)))
            for i in range(10):
                began = time.monotonic()
                fe.q[0].submit(F.T_IN, 0, [(fe.alloc(512), 512)])
                wait_called(fe.q[0], 1, BOUND)
                took = time.monotonic() - began
                self.assertGreaterEqual(took, 0.019)
                self.assertLess(took, 0.5 * SLOW)
            # Several at once, of different length.
            t.rpc('bdev_delay_update_latency', delay_bdev_name='D_m0', latency_type='avg_write',
                  latency_us=5000)
            gpa = fe.alloc(512)
            for i in range(30):
                fe.q[0].submit(F.T_OUT if i % 2 else F.T_IN, 0, [(gpa, 512)])
            wait_called(fe.q[0], 30, BOUND)
            t.stop()

    def test_sqpoll(self):
        # The kernel's threads do the I/O where they were told to be, and sleep when there is none.
        for mode in ('--poll-us', '50'), ('--interrupt-mode',), ():
            t = self.target('0x1', '--sqpoll=0x2', *mode)
            fe = self.connect(self.ctrlr(t, 'c0', self.file(t)), queues=2, event_idx=True)
            for i in range(100):
                self.check_io(fe, q=i % 2, seed=i, sector=8 * i)
                if i % 10 == 0:
                    fe.flush()
                if i % 30 == 0:
                    fe.discard([(8 * i, 8)])
                    time.sleep(0.06)
            for q in fe.q:
                q.swap_call()
                q.swap_kick()
            self.check_io(fe)
            threads = sqpoll_threads(t)
            self.assertEqual(threads, ['1'])
            if mode:
                time.sleep(0.1)
                before = cpu_seconds(t)
                time.sleep(0.5)
                self.assertLess(cpu_seconds(t) - before, 0.05)
            t.stop()

    def test_sqpoll_anywhere(self):
        t = self.target('0x3', '--sqpoll')
        self.check_io(self.connect(self.ctrlr(t, 'c0', self.file(t))))
        self.assertEqual(len(sqpoll_threads(t)), 2)

    def test_messages(self):
        # Starting, stopping and changing queues wakes a sleeping reactor.
        t = self.target('0x3', '--interrupt-mode')
        fe = self.connect(self.disk(t), queues=2, style='qemu11')
        for i in range(60):
            time.sleep(0.001)
            q = fe.q[i % 2]
            began = time.monotonic()
            base = q.stop()
            q.submit(F.T_FLUSH, 0)
            q.start(base)
            q.enable(True)
            # It was there before the ring ran: no kick tells of it.
            wait_called(q, 1, BOUND)
            self.assertLess(time.monotonic() - began, BOUND)

    def test_deep_queues(self):
        t = self.target('0x3', '--poll-us', '20')
        fe = self.connect(self.disk(t), queues=2, queue_size=256, event_idx=True, indirect=True)
        rng = random.Random(4)
        gpa = fe.alloc(4096)
        left = [0, 0]
        for _ in range(2000 // SLOW):
            i = rng.randrange(2)
            q = fe.q[i]
            for _ in range(rng.randrange(1, 30)):
                if q.num_free:
                    q.submit(F.T_IN, 0, [(gpa, 512)])
                    left[i] += 1
            left[i] -= len(q.poll())
            if rng.random() < 0.1:
                wait_called(q, left[i], BOUND)
                left[i] = 0
        for i in range(2):
            if left[i]:
                wait_called(fe.q[i], left[i], BOUND)

    def test_arguments(self):
        for value in ('', 'x', '-1', '1.5', '99999999999999999999'):
            t = self.target('0x1', '--poll-us', value, start=False)
            self.assertEqual(t.run_to_exit(), 1)
            self.assertIn('bad argument', t.log())
        t = self.target('0x1', '--poll-us', '0')
        self.check_io(self.connect(self.disk(t, mib=1)))
        t = self.target('0x1', '--sqpoll=zz', start=False)
        self.assertEqual(t.run_to_exit(), 1)
        self.assertIn("'zz' is not a core mask", t.log())


if __name__ == '__main__':
    spindle.run_tests()
