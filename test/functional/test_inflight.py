#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""In-flight tracking: what a back end that died between any two of its stores has left is done
once more, in order, and nothing else is; what makes no sense is refused.

SplitDevice and PackedDevice (inflight.py) play the dead one. All writes of a case go to one sector,
so the used ring tells the order of completion and the disk which of them was executed last."""
import contextlib
import errno
import os
import random
import struct
import threading
import time

import inflight
from vhostcase import F, MIB, WAIT, VhostCase, pattern, spindle

SIZE = 64           # of a ring
NUM = 12            # requests of a case


def mix_script(dev, heads, finish):
    """Takes and ends requests out of order, alone and in batches, some of them twice over."""
    dev.fetch(6)
    dev.use([heads[3]], finish)
    dev.use([heads[i] for i in (5, 0)], finish)
    dev.fetch(3)
    dev.use([heads[i] for i in (8, 1, 6)], finish)
    dev.fetch(1)


class Case(VhostCase):
    packed = False
    opts = {}

    def device(self, fe, steps=None, **kw):
        r = inflight.region(fe)
        return (inflight.PackedDevice if self.packed else inflight.SplitDevice)(fe, r, steps, **kw)

    def guest(self, path, **opts):
        """A front end that has a region and a ring, but has not started it."""
        opts = dict(self.opts, **opts)
        if self.packed:
            opts['packed'] = True
        fe = self.connect(path, no_start=True, queue_size=SIZE, mem_size=2 * MIB, **opts)
        fe.negotiate()
        inflight.get(fe)
        return fe

    def fill(self, fe, count=NUM, how=None):
        """`count` writes to sector 0, each of its own data; -> (heads, status address by head)"""
        q = fe.q[0]
        data = fe.alloc(512 * count, 512)
        status = fe.alloc(count)
        heads = {}
        hdr = fe.alloc(16)
        fe.mem_write(hdr, struct.pack('<IIQ', F.T_OUT, 0, 0))
        for i in range(count):
            fe.mem_write(data + 512 * i, pattern(512, 1000 + i))
            # Some requests of one descriptor, some of three.
            kind = how or (F.HOW_DIRECT if i % 3 or not q.indirect else F.HOW_INDIRECT)
            head = q.submit_chain([(hdr, 16), (data + 512 * i, 512), (status + i, 1, True)],
                                  status_gpa=status + i, how=kind | F.HOW_NO_KICK, cookie=i)
            heads[head] = status + i
        return list(heads), heads

    def dead(self, path, script, steps=None, spoil=None):
        """A guest whose device has died after that many steps. -> (fe, dev, heads)"""
        fe = self.guest(path)
        heads, status = self.fill(fe)
        dev = self.device(fe, steps)
        dev.fresh()
        with contextlib.suppress(inflight.Dead):
            script(dev, heads, lambda head: fe.mem_write(status[head], b'\0'))
        if spoil:
            spoil(dev)
        return fe, dev, heads

    def completions(self, q, count, timeout=WAIT):
        done = q.wait_all(count, timeout) if count else []
        self.assertEqual({d.status for d in done} or {0}, {0})
        return [d.head for d in done]

    def finish(self, fe, dev, heads):
        """Reconnects; everything not yet told ends exactly once, in the order it has to."""
        q = fe.q[0]
        self.assertEqual([d.head for d in q.poll()], dev.told)
        fe.reconnect()
        rest = [h for h in heads if h not in dev.told and h not in dev.taken]
        want = dev.taken + rest
        self.assertEqual(self.completions(q, len(want)), want)
        if want:
            last = heads.index(want[-1])
            self.assertEqual(fe.read(0, 512, timeout=WAIT), pattern(512, 1000 + last))
        self.assertEqual(q.poll(), [])
        spindle.wait_until(lambda: not dev.r.in_flight(), 2, 'an empty region')
        for i in range(3):
            self.check_io(fe, seed=i)

    def disk_of(self, t):
        return self.disk(t, mib=1, packed_ring=True)


class Steps:
    """A kill after every single store; mixed into a split and a packed case."""
    script = staticmethod(mix_script)

    @spindle.timeout(120)
    def test_killed_after_every_step(self):
        t = self.target()
        path = self.disk_of(t)
        fe, dev, heads = self.dead(path, self.script)
        total = dev.done
        self.finish(fe, dev, heads)
        fe.destroy()
        self.assertGreater(total, 40)
        for steps in range(total):
            fe, dev, heads = self.dead(path, self.script, steps)
            try:
                self.assertEqual(dev.done, steps)
                self.finish(fe, dev, heads)
            except (AssertionError, OSError) as e:
                raise AssertionError(f'killed before step {steps}: {e}') from e
            fe.destroy()

    def test_counters_give_the_order(self):
        # Not the entries' numbers, not the avail ring.
        t = self.target()
        path = self.disk_of(t)

        def script(dev, heads, finish):
            dev.fetch(NUM)
        for order in (list(range(NUM))[::-1], [(i * 5 + 2) % NUM for i in range(NUM)]):
            fe, dev, heads = self.dead(path, script)
            for at, i in enumerate(order):
                dev.r.set_desc(self.entry(dev, heads[i]), counter=(1 << 40) + at * at)
            dev.taken = [heads[i] for i in order]
            self.finish(fe, dev, heads)
            fe.destroy()

    def entry(self, dev, head):
        return head

    def test_equal_counters(self):
        # No back end leaves them so. Any order is right, each request ends once.
        t = self.target()
        path = self.disk_of(t)
        fe, dev, heads = self.dead(path, lambda dev, heads, finish: dev.fetch(NUM))
        for head in heads:
            dev.r.set_desc(self.entry(dev, head), counter=7)
        fe.reconnect()
        self.assertEqual(sorted(self.completions(fe.q[0], NUM)), sorted(heads))
        self.check_io(fe)

    def test_resubmitted_without_a_kick(self):
        t = self.target('0x1', '--poll-us', '20')
        path = self.disk_of(t)
        fe, dev, heads = self.dead(path, lambda dev, heads, finish: dev.fetch(NUM))
        fe.reconnect()
        self.assertEqual(self.completions(fe.q[0], NUM), heads)
        self.assertEqual(fe.q[0].kicks, 0)

    def test_died_again_and_again(self):
        # Each successor dies as well: the region goes on from target to target.
        t = self.target()
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)
        self.inject(t, stuck, 'all', 'pending', num=1000)
        fe, dev, heads = self.dead(path, lambda dev, heads, finish: dev.fetch(5))
        for _ in range(4):
            fe.reconnect()
            spindle.wait_until(lambda: len(dev.r.in_flight()) == NUM, 5, 'all requests taken')
            self.assertEqual(fe.q[0].poll(), [])
            t.kill()
            t.start()
            self.error(t, self.malloc(t, mib=1))
            self.ctrlr(t, 'c0', stuck, packed_ring=True)
            self.inject(t, stuck, 'all', 'pending', num=1000)
        order = sorted(heads, key=lambda h: dev.r.desc(self.entry(dev, h)).counter)
        self.assertEqual(order, heads)
        self.inject(t, stuck, 'clear', 'clear')
        fe.reconnect()
        self.assertEqual(self.completions(fe.q[0], NUM), heads)
        self.check_io(fe)

    def test_a_full_ring(self):
        # Every entry is in flight, as one request or as many: there is no free one then.
        t = self.target()
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)
        for pieces in (1, 2, SIZE):
            self.inject(t, stuck, 'all', 'pending', num=1000)
            fe = self.connect(path, queue_size=SIZE, mem_size=2 * MIB, packed=self.packed,
                              indirect=True)
            q, r = fe.q[0], inflight.region(fe)
            gpa = fe.alloc(MIB, 4096)
            kind = F.T_FLUSH if pieces == 2 else F.T_IN
            fe.mem_write(gpa, struct.pack('<IIQ', kind, 0, 0))
            heads = []
            while q.num_free:
                if pieces == 1:
                    heads.append(q.submit(F.T_IN, 0, [(gpa + 512, 512)], how=F.HOW_INDIRECT))
                    continue
                segs = [(gpa, 16)] + [(gpa + 512 * i, 512, True) for i in range(1, pieces - 1)]
                segs.append((gpa + 16, 1, True))
                heads.append(q.submit_chain(segs, status_gpa=gpa + 16, how=F.HOW_DIRECT))
            spindle.wait_until(lambda: len(r.in_flight()) == len(heads), 5, 'a full region')
            t.kill()
            t.start()
            self.error(t, self.malloc(t, mib=1))
            self.ctrlr(t, 'c0', stuck, packed_ring=True)
            fe.reconnect()
            self.assertEqual(self.completions(q, len(heads)), heads)
            self.check_io(fe)
            fe.destroy()

    def test_a_full_ring_of_another_back_end(self):
        t = self.target()
        path = self.disk_of(t)
        for count in (SIZE, SIZE - 1):
            fe = self.guest(path)
            heads, _ = self.fill(fe, count, F.HOW_INDIRECT)
            dev = self.device(fe)
            dev.fresh()
            dev.fetch(count)
            self.finish(fe, dev, heads)
            fe.destroy()

    @spindle.timeout(120)
    def test_a_full_ring_killed_while_it_ends(self):
        t = self.target()
        path = self.disk_of(t)
        for circular in (True, False):
            steps = first = 0
            while True:
                fe = self.guest(path)
                heads, status = self.fill(fe, SIZE, F.HOW_INDIRECT)
                dev = self.device(fe)
                dev.circular = circular
                dev.fresh()
                dev.fetch(SIZE)
                first = first or dev.done
                dev.steps = first + steps
                died = False
                try:
                    for i in (0, 5, 63, 1):
                        dev.use([heads[i]], lambda head: fe.mem_write(status[head], b'\0'))
                except inflight.Dead:
                    died = True
                try:
                    self.finish(fe, dev, heads)
                except (AssertionError, OSError) as e:
                    raise AssertionError(f'killed before step {steps}: {e}') from e
                fe.destroy()
                if not died:
                    break
                steps += 1
            self.assertGreater(steps, 20)

    def test_two_queues_have_a_region_each(self):
        t = self.target('0x3')
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)
        self.inject(t, stuck, 'all', 'pending', num=1000)
        fe = self.connect(path, queues=3, queue_size=SIZE, mem_size=2 * MIB, packed=self.packed)
        gpa = fe.alloc(512 * 16, 512)
        for q in fe.q:
            for i in range(2 + q.index):
                q.submit(F.T_OUT, 8 * q.index + i, [(gpa, 512)])
        regions = [inflight.region(fe, q) for q in range(3)]
        for i, r in enumerate(regions):
            spindle.wait_until(lambda: len(r.in_flight()) == 2 + i, 5, f'requests of queue {i}')
        t.kill()
        t.start()
        self.malloc(t, mib=1)
        self.ctrlr(t, 'c0', 'm0', packed_ring=True)
        fe.reconnect()
        for q in fe.q:
            self.assertEqual(len(self.completions(q, 2 + q.index)), 2 + q.index)
            self.assertEqual(q.poll(), [])


class Split(Steps, Case):
    opts = {'indirect': True}

    def test_fresh_region_of_a_ring_in_use(self):
        # used_idx must start where the ring's is: else the difference is taken for a batch.
        t = self.target()
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)
        for start in (1, 63, 1000, 65535):
            fe = self.guest(path)
            q = fe.q[0]
            c = q.vq.contents
            for gpa in (q.used_gpa, q.avail_gpa):
                fe.mem_write(gpa + 2, struct.pack('<H', start))
            c.avail_idx = c.kicked_idx = c.last_used = start
            fe.reconnect()
            r = inflight.region(fe)
            spindle.wait_until(lambda: r.version, 5, 'the region in use')
            self.assertEqual((r.version, r.desc_num, r.used_idx), (1, SIZE, start))
            self.inject(t, stuck, 'all', 'pending', num=1000)
            heads, _ = self.fill(fe, 5)
            q.kick()
            spindle.wait_until(lambda: len(r.in_flight()) == 5, 5, 'all requests taken')
            self.assertEqual(r.in_flight(), heads)
            self.assertEqual(heads[0], 0)
            fe.close()
            t.kill()
            t.start()
            self.error(t, self.malloc(t, mib=1))
            self.ctrlr(t, 'c0', stuck, packed_ring=True)
            fe.reconnect()
            self.assertEqual(self.completions(q, 5), heads)
            fe.destroy()

    def test_base_from_before_the_end(self):
        # A front end that lost its connection reads the used index while the old session may still
        # publish. Where there is a region, what it told as the base does not count.
        t = self.target()
        fe = self.connect(self.disk_of(t), queue_size=SIZE, indirect=True)
        q = fe.q[0]
        for stale in (1, 3, 20, 0):
            heads, _ = self.fill(fe, 20)
            q.kick()
            self.completions(q, 20)
            fe.close()
            fe.open(t.path('c0'))
            q.vq.contents.base = q.used_idx - stale & 0xffff
            fe.start()
            heads, _ = self.fill(fe, 5)
            q.kick()
            self.assertEqual(self.completions(q, 5), heads)
            time.sleep(0.01)
            self.assertEqual(q.poll(), [])
            self.assertEqual(q.error(0), 0)

    def test_new_requests_beside_old_ones(self):
        # The avail index goes on behind what is resubmitted, across the wrap of a full ring.
        t = self.target()
        path = self.disk_of(t)
        fe, dev, heads = self.dead(path, lambda dev, heads, finish: dev.fetch(NUM))
        more, _ = self.fill(fe, 10)
        fe.reconnect()
        self.assertEqual(self.completions(fe.q[0], NUM + 10), heads + more)
        self.assertEqual(fe.q[0].stop(), NUM + 10)


class Packed(Steps, Case):
    packed = True
    opts = {'indirect': True}

    def used(self):
        """A ring that has done more and more, in laps; its front end."""
        t = self.target()
        fe = self.connect(self.disk_of(t), queue_size=SIZE, packed=True, indirect=True)
        for count in (0, 1, 19, SIZE - 20, 1, 2 * SIZE, SIZE // 2):
            for i in range(count):
                fe.write(i % 64, pattern(512, i), timeout=WAIT)
            fe.q[0].stop()
            yield fe
            for i in range(3):
                self.check_io(fe, seed=i)
            self.assertEqual(fe.q[0].error(0), 0)

    def test_reset_and_the_region_kept(self):
        # QEMU drops it; others may not. The driver begins at the first place again.
        for fe in self.used():
            fe.q[0].reset()
            fe.q[0].start()
            fe.q[0].enable()

    def test_base_of_one_who_does_not_know(self):
        # QEMU says a fresh ring's when its back end has died. That is no reset.
        for fe in self.used():
            fe.q[0].start(F.PACKED_START)
            fe.q[0].enable()

    @spindle.timeout(120)
    def test_half_a_batch_is_not_seen(self):
        # Of a batch the first used entry is written last. Killed before that, the others stand
        # there; what is done again ends in another order, and one at a time.
        t = self.target()
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)

        def script(dev, heads, finish):
            dev.fetch(8)
            dev.use([heads[0]], finish)
            dev.use([heads[i] for i in (5, 1, 3, 2)], finish)

        fe, dev, _ = self.dead(path, script)
        total = dev.done
        fe.destroy()
        halves = 0
        for steps in range(total - 16, total):
            fe, dev, heads = self.dead(path, script, steps)
            q = fe.q[0]
            self.assertEqual([d.head for d in q.poll()], dev.told)
            halves += len(dev.told) == 1
            left = [h for h in heads if h not in dev.told]
            self.inject(t, stuck, 'write', 'pending', num=len(left) - 1)
            fe.reconnect()
            self.assertEqual(self.completions(q, 1), left[-1:], f'killed before step {steps}')
            time.sleep(0.01)
            self.assertEqual(q.poll(), [], f'killed before step {steps}')
            self.inject(t, stuck, 'clear', 'clear')
            self.assertEqual(sorted(d.head for d in q.wait_all(len(left) - 1, WAIT)),
                             sorted(left[:-1]))
            self.check_io(fe)
            fe.destroy()
        self.assertGreater(halves, 6)

    def entry(self, dev, head):
        """The region's entry of a buffer id, which the request's last entry carries."""
        r = dev.r
        return next(e for e in r.in_flight() if r.desc(r.desc(e).last).id == head)


class Untrusted(Case):
    """Regions no back end has written. The target may refuse them or break the queue; it serves
    others, and another try of the same guest with a fresh region."""
    opts = {'indirect': True}

    def spoilers(self):
        def four_used(dev):
            # Four completions whose batch has not been settled yet.
            dev.r.set(used_idx=(dev.r.used_idx - 4) & 0xffff)
        n = SIZE
        return {
            'version 0 is a fresh one': (lambda d: d.r.set(version=0), None),
            'version 2': (lambda d: d.r.set(version=2), False),
            'version 65535': (lambda d: d.r.set(version=65535), False),
            'desc_num 0': (lambda d: d.r.set(desc_num=0), False),
            'desc_num smaller': (lambda d: d.r.set(desc_num=n // 2), False),
            'desc_num larger': (lambda d: d.r.set(desc_num=n * 2), False),
            'desc_num 65535': (lambda d: d.r.set(desc_num=65535), False),
            'used_idx ahead': (lambda d: d.r.set(used_idx=d.r.used_idx + 1), False),
            'used_idx far behind': (lambda d: d.r.set(used_idx=(d.r.used_idx - n - 1) & 0xffff),
                                    False),
            'used_idx opposite': (lambda d: d.r.set(used_idx=d.r.used_idx ^ 0x8000), False),
            'last_batch_head beyond': (lambda d: (four_used(d), d.r.set(last_batch_head=n)), False),
            'last_batch_head 65535': (lambda d: (four_used(d), d.r.set(last_batch_head=65535)),
                                      False),
            'next beyond': (lambda d: (four_used(d), d.r.set_desc(d.r.last_batch_head, next=n)),
                            False),
            'next loops': (lambda d: (four_used(d), d.r.set_desc(
                d.r.last_batch_head, next=d.r.last_batch_head)), None),
            'everything in flight': (lambda d: [d.r.set_desc(i, inflight=1)
                                                for i in range(n)], None),
            'strange marks': (lambda d: [d.r.set_desc(i, inflight=255) for i in range(0, n, 3)],
                              None),
            'counters at the end': (lambda d: [d.r.set_desc(i, counter=2 ** 64 - 1)
                                               for i in range(n)], True),
            'all ones': (lambda d: d.r.write(b'\xff' * d.r.size), None),
            'garbage': (lambda d: d.r.write(pattern(d.r.size, 77)), None),
            'garbage behind a good header': (lambda d: d.r.write(
                pattern(d.r.size, 78)[d.r.entries_at:], d.r.entries_at), None),
        }

    def outcome(self, fe):
        """True: served; False: refused, or the queue is broken; None: nothing was found to do."""
        q = fe.q[0]
        try:
            fe.reconnect()
            q.kick()
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                if q.error(0.005):
                    return False
                if q.poll():
                    return True
            return None
        except OSError as e:
            # EPROTO: a request that has been told was told again, as the region wanted it.
            self.assertIn(e.errno, (errno.EPIPE, errno.EREMOTEIO, errno.EPROTO, errno.ECONNRESET))
            return False

    @spindle.timeout(120)
    def test_spoiled_regions(self):
        t = self.target('0x3')
        path = self.disk_of(t)
        other = self.connect(self.disk(t, 'c1', 'm1'))
        for name, (spoil, want) in self.spoilers().items():
            with self.subTest(name):
                fe, dev, heads = self.dead(path, mix_script, None, spoil)
                fe.q[0].poll()
                got = self.outcome(fe)
                if want is not None:
                    self.assertIs(got, want)
                self.assertTrue(t.running())
                self.check_io(other)
                fe.destroy()
                fresh = self.connect(path, queue_size=SIZE, packed=self.packed)
                self.check_io(fresh)
                fresh.destroy()
        self.wait_sessions(t, 0)

    def test_random_regions(self):
        t = self.target()
        path = self.disk_of(t)
        rng = random.Random(5)
        for seed in range(60):
            def spoil(dev):
                for _ in range(rng.choice((1, 2, 8))):
                    # Mostly the header and the first entries, where it matters.
                    at = rng.randrange(rng.choice((24, 24, 200, dev.r.size - 2)))
                    dev.r.write(struct.pack('<H', rng.choice((0, 1, SIZE - 1, SIZE, 0xffff,
                                                              rng.randrange(65536)))), at)
            with self.subTest(seed=seed):
                fe, dev, heads = self.dead(path, mix_script, rng.randrange(60), spoil)
                with contextlib.suppress(OSError):
                    fe.q[0].poll()
                    fe.reconnect()
                    fe.q[0].wait(0.05)
                self.assertTrue(t.running())
                fe.destroy()
        self.check_io(self.connect(path))

    def test_messages(self):
        t = self.target()
        path = self.disk_of(t)
        for name, change in {
                'no queues': dict(queues=0), 'no entries': dict(size=0),
                'more entries than fit': dict(size=65535),
                'more queues than fit': dict(queues=65535), 'one queue too many': dict(queues=2),
                'too small': lambda n: dict(length=n - 1), 'one header': dict(length=16),
                'length 0': dict(length=0), 'length of all': dict(length=2 ** 64 - 1),
                'longer than the file': dict(length=1 << 40),
                'offset beyond the file': dict(offset=1 << 40),
                'offset at its end': lambda n: dict(offset=(n + 4095) & ~4095),
                'offset wraps': dict(offset=2 ** 64 - 4096),
                'sum wraps': lambda n: dict(offset=2 ** 64 - 4096, length=n + 4096)}.items():
            with self.subTest(name):
                fe = self.connect(path, no_start=True, style='qemu11', queue_size=SIZE)
                fe.negotiate()
                inflight.get(fe, 1, SIZE)
                args = dict(length=fe.c.inflight_size, offset=0, queues=1, size=SIZE)
                args.update(change(fe.c.inflight_size) if callable(change) else change)
                self.check_spoiled(fe, **args)
                self.assertTrue(t.running())
                fe.destroy()
        self.check_io(self.connect(path))

    def check_spoiled(self, fe, length, offset, queues, size):
        """Refused at once, or the ring does not come to life."""
        try:
            fe.set_inflight_fd(length, offset, queues, size, fe.c.inflight_fd)
            fe.set_features(fe.c.features)
            if fe.has_protocol(F.PF_CONFIGURE_MEM_SLOTS):
                fe.add_mem_reg(0)
            fe.q[0].start()
            fe.q[0].enable(True)
            fe.request(F.T_FLUSH, timeout=0.3)
        except OSError as e:
            self.assertIn(e.errno, (errno.EPIPE, errno.EREMOTEIO, errno.ETIMEDOUT,
                                    errno.ECONNRESET))
            return
        self.fail('served with a region that cannot be')

    def test_get_with_nonsense(self):
        t = self.target()
        path = self.disk_of(t)
        for queues, size in ((0, 0), (0, SIZE), (1, 0), (65535, 65535), (257, SIZE), (1, 32768)):
            fe = self.connect(path, no_start=True)
            fe.negotiate()
            with contextlib.suppress(OSError):
                length, _, fd = fe.get_inflight_fd(queues, size)
                os.close(fd)
                self.assertLess(length, 64 * MIB)
            fe.destroy()
        self.check_io(self.connect(path))

    def test_no_fd_and_many(self):
        t = self.target()
        path = self.disk_of(t)
        fds = len(os.listdir(f'/proc/{t.pid}/fd'))
        for count in (0, 2, 8):
            fe = self.connect(path, no_start=True)
            fe.negotiate()
            inflight.get(fe)
            fe.send_raw(F.SET_INFLIGHT_FD, struct.pack(
                '<QQHHI', fe.c.inflight_size, 0, 1, SIZE, 0), fds=[fe.c.inflight_fd] * count)
            self.check_closed(fe)
            fe.destroy()
        self.wait_sessions(t, 0)
        self.check_fds(t, fds)

    def test_truncated_afterwards(self):
        # A front end may take its own memory away. It hurts itself, not the target.
        t = self.target('0x3')
        path = self.disk_of(t)
        other = self.connect(self.disk(t, 'c1', 'm1'))
        fe = self.connect(path, no_start=True, queue_size=SIZE, packed=self.packed)
        fe.negotiate()
        length, _, fd = fe.get_inflight_fd(1, SIZE)
        os.close(fd)
        own = os.memfd_create('inflight')
        os.ftruncate(own, length)
        c = fe.c
        c.inflight_fd, c.inflight_size, c.inflight_offset = own, length, 0
        fe.start_rings()
        self.check_io(fe)
        os.ftruncate(own, 0)
        with contextlib.suppress(OSError):
            fe.read(0, 512, timeout=0.5)
        self.assertTrue(t.running())
        self.check_io(other)


class UntrustedPacked(Untrusted):
    packed = True

    def spoilers(self):
        n = SIZE

        def first(d):
            return d.r.in_flight()[0]

        def unsettled(d):
            # The last used entry is visible, the region's copies have not followed.
            d.r.set(old_used_idx=d.r.used_idx - 1)
        return {
            'version 0 is a fresh one': (lambda d: d.r.set(version=0), None),
            'version 2': (lambda d: d.r.set(version=2), False),
            'desc_num 0': (lambda d: d.r.set(desc_num=0), False),
            'desc_num smaller': (lambda d: d.r.set(desc_num=n // 2), False),
            'desc_num larger': (lambda d: d.r.set(desc_num=n * 2), False),
            'used_idx beyond': (lambda d: d.r.set(used_idx=n, old_used_idx=n), False),
            'old_used_idx beyond': (lambda d: d.r.set(old_used_idx=n), False),
            'used_idx 65535': (lambda d: d.r.set(used_idx=65535), False),
            'free_head beyond': (lambda d: d.r.set(free_head=n, old_free_head=n), None),
            'free_head 65535, unsettled': (lambda d: (unsettled(d), d.r.set(free_head=65535)),
                                           False),
            'wrap counters': (lambda d: d.r.set(used_wrap=255, old_used_wrap=255), None),
            'num 0': (lambda d: d.r.set_desc(first(d), num=0), False),
            'num beyond': (lambda d: d.r.set_desc(first(d), num=n + 1), False),
            'num 65535': (lambda d: d.r.set_desc(first(d), num=65535), False),
            'last beyond': (lambda d: d.r.set_desc(first(d), last=n), None),
            'next beyond': (lambda d: [d.r.set_desc(i, next=n) for i in range(n)], None),
            'next loops': (lambda d: d.r.set_desc(first(d), next=first(d), num=2), False),
            'id beyond': (lambda d: [d.r.set_desc(i, id=n) for i in range(n)], False),
            'one id for all': (lambda d: [d.r.set_desc(i, id=3) for i in range(n)], False),
            'everything in flight': (lambda d: [d.r.set_desc(i, inflight=1, num=n)
                                                for i in range(n)], False),
            'indirect in the middle': (lambda d: [d.r.set_desc(i, flags=F.DESC_INDIRECT
                                                               | F.DESC_NEXT)
                                                  for i in range(n)], False),
            'addresses nowhere': (lambda d: [d.r.set_desc(i, addr=2 ** 63) for i in range(n)],
                                  False),
            'lengths': (lambda d: [d.r.set_desc(i, len=2 ** 32 - 1) for i in range(n)], False),
            'addresses wrap': (lambda d: [d.r.set_desc(i, addr=2 ** 64 - 8) for i in range(n)],
                               False),
            'all ones': (lambda d: d.r.write(b'\xff' * d.r.size), None),
            'garbage': (lambda d: d.r.write(pattern(d.r.size, 77)), None),
            'garbage behind a good header': (lambda d: d.r.write(
                pattern(d.r.size, 78)[d.r.entries_at:], d.r.entries_at), None),
        }


class Disconnect(Case):
    """The connection is lost but the target lives: its requests may still be under way."""

    def test_old_requests_end_before_the_rings_start(self):
        t = self.target('0x1')
        stuck = self.error(t, self.malloc(t, mib=1))
        path = self.ctrlr(t, 'c0', stuck, packed_ring=True)
        other = self.connect(self.disk(t, 'c1', 'm1', mib=1))
        stranger = self.connect(path)
        fe = self.connect(path, queue_size=SIZE, packed=self.packed)
        r = inflight.region(fe)
        self.inject(t, stuck, 'write', 'pending', num=NUM)
        heads, _ = self.fill(fe)
        fe.q[0].kick()
        spindle.wait_until(lambda: len(r.in_flight()) == NUM, 5, 'all requests taken')
        fe.close()
        self.wait_sessions(t, 1)
        for i in range(2):      # its reactor has heard of it once it has served others meanwhile
            self.check_io(stranger, sector=64, seed=i)
        began = reconnect_meanwhile(fe)
        more, _ = self.fill(fe, 2)
        # Nothing of this guest moves; everybody else does.
        for i in range(10):
            self.check_io(other, seed=i)
            self.check_io(stranger, sector=64, seed=i)
            t.rpc('vhost_get_controllers')
        self.assertEqual(fe.q[0].poll(), [])
        self.assertEqual(len(r.in_flight()), NUM)
        self.inject(t, stuck, 'clear', 'clear')
        began.join(WAIT)
        fe.q[0].kick()
        self.assertEqual(self.completions(fe.q[0], NUM + 2), heads + more)
        self.assertEqual(fe.read(0, 512, timeout=WAIT), pattern(512, 1001))
        self.assertEqual(fe.q[0].poll(), [])

    def test_no_late_write(self):
        # Were the old write still under way when the new ring runs, it would land on the newer one.
        t = self.target('0x3')
        self.delay(t, self.malloc(t, mib=1), 800000)
        path = self.ctrlr(t, 'c0', 'D_m0', packed_ring=True)
        fe = self.connect(path, queue_size=SIZE, packed=self.packed)
        r = inflight.region(fe)
        self.fill(fe, 4)
        fe.q[0].kick()
        spindle.wait_until(lambda: len(r.in_flight()) == 4, 5, 'all requests taken')
        fe.reconnect()
        newer = fe.alloc(512, 512)
        fe.mem_write(newer, pattern(512, 5))
        self.completions(fe.q[0], 4)
        fe.q[0].submit(F.T_OUT, 0, [(newer, 512)])
        self.completions(fe.q[0], 1)
        time.sleep(0.9)
        self.assertEqual(fe.read(0, 512, timeout=WAIT), pattern(512, 5))


class DisconnectPacked(Disconnect):
    packed = True


def reconnect_meanwhile(fe):
    """fe.reconnect() in a thread, as an answer may take its time."""
    thread = threading.Thread(target=fe.reconnect)
    thread.start()
    return thread


if __name__ == '__main__':
    spindle.run_tests()
