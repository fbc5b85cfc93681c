#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Starting, stopping and changing virtqueues, above all while requests are in flight: ENABLE,
GET_VRING_BASE, kick and call fds, and nobody else waiting meanwhile."""
import os
import random
import struct
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, spindle, wait_called


def submit_reads(fe, count, q=0, length=512, sector=0):
    """`count` reads into memory of their own; -> its address."""
    gpa = fe.alloc(length * count, 4096)
    for i in range(count):
        fe.q[q].submit(F.T_IN, sector + i * (length // 512), [(gpa + i * length, length)],
                       cookie=i)
    return gpa


def check_statuses(case, done, status=F.S_OK):
    case.assertEqual({d.status for d in done}, {status})


class Enable(VhostCase):
    def test_disabled_ring_stands_still(self):
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, style='qemu11')
        self.check_io(fe)
        fe.q[0].enable(False)
        submit_reads(fe, 4)
        fe.q[0].kick()
        self.check_io(fe, q=1)
        time.sleep(0.1)
        self.assertEqual(fe.q[0].poll(), [])
        fe.q[0].enable(True)
        check_statuses(self, fe.q[0].wait_all(4, WAIT))
        self.check_io(fe)

    def test_never_enabled(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_enable=True)
        submit_reads(fe, 1)
        fe.q[0].kick()
        time.sleep(0.1)
        self.assertEqual(fe.q[0].poll(), [])
        fe.q[0].enable(True)
        check_statuses(self, fe.q[0].wait_all(1, WAIT))

    def test_enable_before_kick_and_after(self):
        # QEMU 7.2 kicks and then enables; others do it the other way round.
        t = self.target()
        path = self.disk(t)
        for enable_first in (False, True):
            fe = self.connect(path, no_start=True)
            fe.negotiate()
            fe.add_mem_reg(0)
            if enable_first:
                fe.q[0].enable(True)
            fe.q[0].start(0, True)
            if not enable_first:
                fe.q[0].enable(True)
            self.check_io(fe)
            fe.destroy()

    def test_disable_under_load(self):
        # Once ENABLE 0 is acknowledged, not one more request is begun.
        t = self.target()
        self.delay(t, self.malloc(t), 2000)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), style='qemu11', queue_size=256)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        left = 0
        for _ in range(20):
            while q.num_free >= 3:
                q.submit(F.T_IN, 0, [(gpa, 512)])
                left += 1
            q.enable(False)
            left -= len(q.poll())
            used = q.used_idx
            while q.num_free >= 3:
                q.submit(F.T_IN, 0, [(gpa, 512)])
                left += 1
            time.sleep(0.005)
            self.assertEqual(q.used_idx, used)
            self.assertGreater(left, 0)
            q.enable(True)
        check_statuses(self, q.wait_all(left, WAIT))

    def test_rings_too_small_for_large_requests(self):
        # What was promised in the configuration space never fits: the log says so.
        t = self.target()
        path = self.disk(t)
        for opts, told in (({'queue_size': 128}, 0), ({'queue_size': 16, 'indirect': True}, 0),
                           ({'queue_size': 16, 'queues': 2}, 1), ({'queue_size': 64}, 2)):
            fe = self.connect(path, **opts)
            self.check_io(fe)
            self.assertEqual(t.log().count('will never fit'), told)
            fe.destroy()
        self.assertIn('16 descriptors and no indirect ones: a request in more than 14 pieces',
                      t.log())

    def test_disabling_one_queue_leaves_the_others(self):
        t = self.target('0x3')
        fe = self.connect(self.disk(t), queues=4, style='qemu11')
        for off in range(4):
            fe.q[off].enable(False)
            for q in range(4):
                if q != off:
                    self.check_io(fe, q=q, seed=off + q)
            fe.q[off].enable(True)
        for q in range(4):
            self.check_io(fe, q=q)


class Stop(VhostCase):
    def test_base_comes_after_the_last_request(self):
        # A pending request holds the answer back; nobody else notices.
        t = self.target('0x3')
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        other = self.connect(self.disk(t, 'c1', 'm1'), queues=2)
        same = self.connect(t.path('c0'))
        self.inject(t, name, 'read', 'pending')
        submit_reads(fe, 1)
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 1, 2, 'in flight')
        fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
        worst = 0
        for i in range(50):
            began = time.monotonic()
            t.rpc('vhost_get_controllers')
            worst = max(worst, time.monotonic() - began)
            self.check_io(other, q=i % 2, seed=i)
            self.check_io(same, seed=i)
        self.assertLess(worst, 1 * SLOW)
        self.assertTrue(fe.quiet(0.2), 'answered while a request was in flight')
        self.assertEqual(fe.q[0].used_idx, 0)
        self.inject(t, name, 'clear', 'clear')
        answer = fe.recv()
        self.assertEqual(fe.q[0].used_idx, 1, 'answered before the request ended')
        self.assertEqual((answer.request, answer.payload),
                         (F.GET_VRING_BASE, struct.pack('<II', 0, 1)))
        check_statuses(self, fe.q[0].poll(), F.S_IOERR)

    def test_nothing_is_written_after_the_answer(self):
        t = self.target()
        self.delay(t, self.malloc(t), 50000)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'))
        q = fe.q[0]
        gpa = submit_reads(fe, 16)
        time.sleep(0.02 * SLOW)
        base = q.stop()
        self.assertEqual(q.used_idx, base)
        self.assertLessEqual(base, 16)
        check_statuses(self, q.poll() or [F.Completion(0, 0, 0, 0)])
        for i in range(16):
            fe.mem_write(gpa + 512 * i, b'\xee' * 512)
        time.sleep(0.1)
        self.assertEqual(fe.mem_read(gpa, 16 * 512), b'\xee' * 16 * 512)
        self.assertEqual(q.used_idx, base)

    def test_continue_where_it_stopped(self):
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, indirect=True)
        q = fe.q[1]
        count = 0
        for i in range(30):
            for j in range(i % 5 + 1):
                self.check_io(fe, q=1, seed=i + j)
                count += 2
            self.assertEqual(q.stop(), count)
            submit_reads(fe, 2, q=1)
            q.kick()
            self.check_io(fe, q=0, sector=64)
            self.assertEqual(q.poll(), [])
            q.start(count)      # enabled it still is: QEMU 7.2 sends no ENABLE here
            check_statuses(self, q.wait_all(2, WAIT))
            count += 2

    def test_stop_and_start_under_load(self):
        t = self.target('0x3')
        self.delay(t, self.malloc(t), 300)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), queues=2, event_idx=True, indirect=True)
        gpa = fe.alloc(4096)
        for i in range(60):
            q = fe.q[i % 2]
            for _ in range(40):
                q.submit(F.T_IN, 0, [(gpa, 512)])
            base = q.stop()
            self.assertEqual(q.used_idx, base)
            q.start(base)
            check_statuses(self, q.wait_all(40, WAIT))

    def test_messages_overtake_a_busy_reactor(self):
        # The reactor is kept at work for milliseconds a pass, so what a message wants of a ring
        # is still on its way there when the next message arrives.
        t = self.target()
        self.disk(t, mib=64)
        busy = self.connect(t.path('c0'), mem_size=128 * MIB, queue_size=256,
                            indirect=True)
        gpa = busy.alloc(64 * MIB, 4096)
        fe = self.connect(t.path('c0'), style='qemu', queues=2)
        fe.stop()
        for q in fe.q:
            q.enable(True)
        for i in range(120):
            if busy.q[0].in_flight < 64:
                for j in range(64):
                    busy.q[0].submit(F.T_IN, 2048 * j, [(gpa + j * MIB, MIB)],
                                     how=F.HOW_NO_PUBLISH)
                busy.q[0].publish()
            # None of these is acknowledged, so they follow each other at once.
            for q in fe.q:
                q.start(q.base)
            for step in range(i % 4):
                for q in fe.q:
                    if (i + step) % 3 == 0:
                        q.enable(step % 2 == 0)
                    elif (i + step) % 3 == 1:
                        q.swap_call()
                    else:
                        fe.set_config(32, bytes([step % 2]))
            fe.q[0].enable(True)
            for q in fe.q:
                q.stop()
            busy.q[0].poll()
        for q in fe.q:
            q.start(q.base)
            q.enable(True)
        for q in range(2):
            self.check_io(fe, q=q)
        busy.q[0].wait_all(busy.q[0].in_flight, WAIT)

    def test_base_of_a_ring_never_started(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True)
        fe.negotiate()
        self.assertEqual(fe.get_vring_base(0), 0)
        fe.set_vring_base(3, 77)
        self.assertEqual(fe.get_vring_base(3), 77)
        self.assertEqual(fe.get_vring_base(200), 0)

    def test_any_base_and_the_wrap(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True, event_idx=True)
        fe.negotiate()
        q = fe.q[0]
        c = q.vq.contents
        for start in (1, 127, 128, 32767, 65530):
            if start > 1:
                q.stop()
            else:
                fe.add_mem_reg(0)
            q.reset()
            fe.mem_write(q.used_gpa + 2, struct.pack('<H', start))
            fe.mem_write(q.avail_gpa + 2, struct.pack('<H', start))
            c.avail_idx = c.kicked_idx = c.last_used = start
            q.start(start)
            q.enable(True)
            for i in range(20):
                self.check_io(fe, seed=i)
            self.assertEqual(q.used_idx, (start + 40) & 0xffff)
        self.assertEqual(q.stop(), (65530 + 40) & 0xffff)

    def test_more_requests_than_the_index_counts(self):
        t = self.target()
        self.null(t)
        fe = self.connect(self.ctrlr(t, 'c0', 'n0'), queue_size=256, indirect=True)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        total = 0
        while total < 70000:
            for _ in range(256):
                q.submit(F.T_IN, 0, [(gpa, 512)], how=F.HOW_NO_PUBLISH)
            q.publish()
            q.kick(False)
            check_statuses(self, q.wait_all(256, WAIT))
            total += 256
        self.assertEqual(q.stop(), total & 0xffff)

    def test_closed_with_requests_in_flight(self):
        t = self.target()
        name = self.error(t, self.malloc(t))
        path = self.ctrlr(t, 'c0', name)
        for how in ('close', 'while waiting'):
            fe = self.connect(path)
            self.inject(t, name, 'read', 'pending', num=4)
            submit_reads(fe, 4)
            spindle.wait_until(lambda: self.sessions(t)[-1]['inflight_task_cnt'] == 4, 2,
                               'in flight')
            if how == 'while waiting':
                fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
                self.assertTrue(fe.quiet(0.05))
            fe.destroy()
            self.wait_sessions(t, 0)
            # Its ghost holds requests of the bdev, and the next one is served all the same.
            fe = self.connect(path)
            self.check_io(fe)
            fe.destroy()
            self.inject(t, name, 'clear', 'clear')
        self.wait_sessions(t, 0)


class KickAndCall(VhostCase):
    def test_no_kick_fd(self):
        t = self.target()
        path = self.disk(t)
        for event_idx in (False, True):
            fe = self.connect(path, no_kick_fd=True, event_idx=event_idx)
            for i in range(50):
                self.check_io(fe, seed=i)
            self.assertEqual(fe.q[0].kicks, 0)
            fe.destroy()

    def test_no_call_fd(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_call_fd=True)
        for i in range(50):
            self.check_io(fe, seed=i)
        self.assertEqual(fe.q[0].call_pending(0.02), 0)

    def calls(self, t, rounds=400, **opts):
        """Requests one at a time and in batches, each woken by the call fd alone."""
        fe = self.connect(t.path('c0'), **opts)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        rng = random.Random(3)
        for _ in range(rounds):
            n = rng.choice((1, 1, 1, 2, 17))
            for _ in range(n):
                q.submit(F.T_IN, 0, [(gpa, 512)])
            check_statuses(self, wait_called(q, n))
        return fe

    def test_no_call_is_lost(self):
        t = self.target()
        self.disk(t)
        for opts in ({}, {'event_idx': True}, {'event_idx': True, 'indirect': True}):
            self.calls(t, **opts).destroy()

    def test_calls_not_wanted_are_not_made(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        q = fe.q[0]
        self.check_io(fe)
        q.call_pending(0.1)
        q.set_avail_flags(1)
        calls = q.calls         # those that a wait has met
        for i in range(20):
            self.check_io(fe, seed=i)
        self.assertEqual(q.calls - calls + q.call_pending(0.05), 0)
        q.set_avail_flags(0)
        self.check_io(fe)
        self.assertGreater(q.calls - calls + q.call_pending(0.1), 0)

    def test_used_event_is_honoured(self):
        t = self.target()
        fe = self.connect(self.disk(t), event_idx=True)
        q = fe.q[0]
        gpa = fe.alloc(512)
        self.check_io(fe)       # the first publication after a start may always call
        q.call_pending(0.05)
        q.set_used_event(q.last_used + 9)
        for i in range(10):
            q.submit(F.T_IN, 0, [(gpa, 512)])
            while not q.poll():
                pass
            if i < 9:
                self.assertEqual(q.call_pending(0.002), 0, f'called at request {i}')
        self.assertEqual(q.call_pending(WAIT), 1)

    def test_call_fd_swapped_under_load(self):
        # The call of a completion between the old fd and the new must not get lost.
        t = self.target()
        self.delay(t, self.malloc(t), 150)
        path = self.ctrlr(t, 'c0', 'D_m0')
        for style in ('qemu', 'qemu11'):
            for event_idx in (False, True):
                fe = self.connect(path, style=style, event_idx=event_idx)
                q = fe.q[0]
                gpa = fe.alloc(4096)
                for i in range(150):
                    q.set_used_event(q.last_used)
                    q.submit(F.T_IN, 0, [(gpa, 512)])
                    for _ in range(i % 3 + 1):
                        q.swap_call()
                    check_statuses(self, wait_called(q, 1))
                fe.destroy()

    def test_kick_fd_swapped_under_load(self):
        t = self.target('0x1', '--interrupt-mode')
        fe = self.connect(self.disk(t), style='qemu11')
        q = fe.q[0]
        gpa = fe.alloc(4096)
        for i in range(200):
            if i % 2:
                q.submit(F.T_IN, 0, [(gpa, 512)])
                q.swap_kick()
            else:
                q.swap_kick()
                q.submit(F.T_IN, 0, [(gpa, 512)])
            check_statuses(self, q.wait_all(1, WAIT))

    def test_call_fd_taken_away_and_given_back(self):
        t = self.target()
        fe = self.connect(self.disk(t), style='qemu11')
        q = fe.q[0]
        self.check_io(fe)
        fe.set_vring_fd(F.SET_VRING_CALL, 0, -1)
        q.call_pending(0.02)
        calls = q.calls
        self.check_io(fe)
        self.assertEqual(q.calls - calls + q.call_pending(0.03), 0)
        fe.set_vring_fd(F.SET_VRING_CALL, 0, q.call_fd)
        self.check_io(fe)
        self.assertGreater(q.calls - calls + q.call_pending(0.1), 0)

    def test_fds_of_any_kind(self):
        # A call fd that cannot be written to, or blocks, harms nobody.
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, style='qemu11')
        read_end, write_end = os.pipe()
        self.addCleanup(os.close, read_end)
        self.addCleanup(os.close, write_end)
        os.set_blocking(write_end, False)
        with self.assertRaises(BlockingIOError):
            while True:
                os.write(write_end, bytes(65536))
        os.set_blocking(write_end, True)
        full = os.eventfd(0)
        os.eventfd_write(full, 0xfffffffffffffffe)     # where writes block
        self.addCleanup(os.close, full)
        with open('/dev/null') as null:
            for fd in (read_end, write_end, full):
                fe.set_vring_fd(F.SET_VRING_CALL, 0, fd)
                for i in range(4):
                    self.check_io(fe, q=0, seed=i)
                    self.check_io(fe, q=1, seed=i)
            fe.set_vring_fd(F.SET_VRING_KICK, 0, read_end)
            self.check_io(fe, q=0)
            self.check_io(fe, q=1)
            # What a file system answers for may take its time: not with us.
            with self.assertRaises(OSError):
                fe.set_vring_fd(F.SET_VRING_CALL, 0, null.fileno())

    def test_coalescing(self):
        # Fewer calls, and none lost at the end of a burst.
        t = self.target()
        path = self.disk(t)
        t.rpc('vhost_controller_set_coalescing', ctrlr='c0', delay_base_us=1000,
              iops_threshold=1000)
        fe = self.connect(path, queue_size=256)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for _ in range(64):
                q.submit(F.T_IN, 0, [(gpa, 512)])
            check_statuses(self, wait_called(q, 64))
        t.rpc('vhost_controller_set_coalescing', ctrlr='c0', delay_base_us=0,
              iops_threshold=1000)
        for _ in range(100):
            q.submit(F.T_IN, 0, [(gpa, 512)])
            check_statuses(self, wait_called(q, 1))


class Queues(VhostCase):
    def test_sizes(self):
        t = self.target()
        path = self.disk(t)
        for size, opts in ((1, {'indirect': True}), (2, {'indirect': True}), (4, {}), (8, {}),
                           (256, {}), (1024, {})):
            with self.subTest(size=size):
                fe = self.connect(path, queue_size=size, **opts)
                for i in range(2 * size + 3):
                    fe.write(i % 64, bytes([i & 255]) * 512)
                self.assertEqual(fe.q[0].stop(), 2 * size + 3)
                fe.destroy()

    def test_many_queues(self):
        t = self.target('0x3')
        fe = self.connect(self.disk(t), queues=128, queue_size=16)
        for q in range(128):
            fe.write(q, bytes([q]) * 512, q=q)
        self.assertEqual(fe.read(0, 128 * 512, q=127), b''.join(bytes([q]) * 512
                                                                for q in range(128)))
        fe.stop()

    def test_queues_are_spread(self):
        # Two reactors, four queues: each reactor does half of the work.
        spindle.need_cores(2)
        t = self.target('0x3')
        fe = self.connect(self.disk(t), queues=4)
        before = t.rpc('framework_get_reactors')
        for i in range(400):
            fe.read(0, 65536, q=i % 4)
        after = t.rpc('framework_get_reactors')
        for a, b in zip(after['reactors'], before['reactors']):
            # 200 copies of 64 KiB take more than half a millisecond.
            self.assertGreater((a['busy'] - b['busy']) / after['tick_rate'], 0.0005)
        channels = t.rpc('bdev_get_iostat', name='m0', per_channel=True)['channels']
        self.assertEqual([c['num_read_ops'] for c in channels], [200, 200])

    def test_cpumask_confines_the_queues(self):
        spindle.need_cores(2)
        t = self.target('0x3')
        fe = self.connect(self.disk(t, cpumask='0x2'), queues=4)
        for q in range(4):
            self.check_io(fe, q=q)
        channels = t.rpc('bdev_get_iostat', name='m0', per_channel=True)['channels']
        self.assertEqual([c['thread_id'] for c in channels], [3])

    def test_rings_anywhere_and_moved(self):
        # SET_VRING_ADDR while the ring runs: it goes on at the new place.
        t = self.target()
        fe = self.connect(self.disk(t), style='qemu11', mem_size=8 * MIB)
        q = fe.q[0]
        self.check_io(fe)
        base = q.used_idx
        new = fe.alloc(16384, 4096)
        fe.mem_write(new, fe.mem_read(q.desc_gpa, 16 * 128))
        fe.mem_write(new + 4096, fe.mem_read(q.avail_gpa, 4 + 2 * 128 + 2))
        fe.mem_write(new + 8192, fe.mem_read(q.used_gpa, 4 + 8 * 128 + 2))
        fe.set_vring_addr(0, fe.uva(new), fe.uva(new + 8192), fe.uva(new + 4096))
        fe.get_features()
        status = fe.alloc(64)
        fe.mem_write(status, struct.pack('<IIQ', F.T_FLUSH, 0, 0) + b'\xff')
        fe.write_desc(new, status, 16, F.DESC_NEXT, 1)
        fe.write_desc(new + 16, status + 16, 1, F.DESC_WRITE)
        fe.mem_write(new + 4096 + 4 + 2 * (base % 128), struct.pack('<H', 0))
        fe.mem_write(new + 4096 + 2, struct.pack('<H', base + 1))
        q.kick()
        spindle.wait_until(lambda: fe.mem_read(new + 8194, 2) == struct.pack('<H', base + 1), 5,
                           'the used index of the moved ring')
        self.assertEqual(fe.mem_read(status + 16, 1), b'\0')
        self.assertEqual(q.used_idx, base, 'the old ring is still written')
        self.assertEqual(fe.get_vring_base(0), base + 1)

    def test_rings_outside_memory(self):
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, style='qemu11')
        fe.q[0].stop()
        for desc, used, avail in ((1 << 40, 0, 0), (0, 1 << 40, 0), (0, 0, 1 << 40),
                                  ((1 << 64) - 16, 0, 0), (4, 0, 0), (0, 2, 0), (0, 0, 1)):
            with self.subTest(desc=desc, used=used, avail=avail):
                q = fe.q[0]

                def place(gpa, change):
                    return change if change >= 1 << 40 else fe.uva(gpa) + change

                fe.set_vring_addr(0, place(q.desc_gpa, desc), place(q.used_gpa, used),
                                  place(q.avail_gpa, avail))
                fe.set_vring_fd(F.SET_VRING_KICK, 0, q.kick_fd)
                self.assertEqual(q.error(WAIT), 1)
                self.check_io(fe, q=1)
                q.stop()
        fe.q[0].reset()
        fe.q[0].start(0)
        self.check_io(fe, q=0)


if __name__ == '__main__':
    spindle.run_tests()
