#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Packed virtqueues: the data mix of test_blk_data over them, laps and wraps, where a stopped ring
stands, who notifies whom, and drivers that break the rules."""
import contextlib
import random
import struct
import time

import test_blk_data
from vhostcase import F, MIB, SLOW, WAIT, VhostCase, spindle, wait_called


class Case(VhostCase):
    def ctrlr(self, t, name, bdev, **params):
        params.setdefault('packed_ring', True)
        return super().ctrlr(t, name, bdev, **params)

    def connect(self, path, **opts):
        opts.setdefault('packed', True)
        fe = super().connect(path, **opts)
        if fe.c.features:
            self.assertEqual(fe.has_feature(F.F_RING_PACKED), opts['packed'])
        return fe

    def reads(self, q, count, gpa, how=0):
        for i in range(count):
            q.submit(F.T_IN, 0, [(gpa, 512)], how=how, cookie=i)


class Mix(Case, test_blk_data.Mix):
    """Every test of the split rings' mix."""
    test_flushed_data_outlive_a_crash = None    # no rings in it

    def test_malloc_legacy_four_queues(self):
        # A packed ring is not for legacy drivers.
        t = self.target('0x3')
        self.mix(self.connect(self.shared_disk(t), queues=4, event_idx=True),
                 4 * MIB // test_blk_data.SECTOR, seed=3)


class Offer(VhostCase):
    def test_only_where_asked_for(self):
        t = self.target()
        self.malloc(t)
        for name, params, want in (('c0', {}, None), ('c1', {'packed_ring': False}, False),
                                   ('c2', {'packed_ring': True}, True)):
            fe = self.connect(self.ctrlr(t, name, 'm0', **params), packed=True)
            if want is not None:
                self.assertEqual(fe.has_feature(F.F_RING_PACKED), want)
            self.check_io(fe)
            self.assertEqual(fe.q[0].packed, fe.has_feature(F.F_RING_PACKED))

    def test_split_on_the_same_controller(self):
        t = self.target()
        path = self.disk(t, packed_ring=True)
        for packed in (False, True, False, True):
            fe = self.connect(path, packed=packed)
            self.assertEqual(fe.q[0].packed, packed)
            self.check_io(fe)
            fe.destroy()

    def test_changed_by_a_reset(self):
        # One guest may load a driver with packed rings after one without.
        t = self.target()
        fe = self.connect(self.disk(t, packed_ring=True), packed=False, no_inflight=True)
        for packed in (True, False, True):
            self.check_io(fe)
            fe.stop()
            fe.reset_device()
            bit = 1 << F.F_RING_PACKED
            fe.set_features((fe.c.features & ~bit) | (bit if packed else 0))
            F.lib().fe_vq_use_packed(fe.q[0].vq, packed)
            fe.q[0].reset()
            fe.q[0].start()
            fe.q[0].enable(True)
        self.check_io(fe)


class Laps(Case):
    def test_small_rings_many_laps(self):
        # Chains that end at the last place, begin at it and lie across it.
        t = self.target()
        path = self.disk(t, mib=1)
        for size, indirect in ((4, False), (8, False), (16, True), (128, False)):
            fe = self.connect(path, queue_size=size, indirect=indirect)
            rng = random.Random(size)
            q = fe.q[0]
            gpa = fe.alloc(4096 * 16, 4096)
            total = 0
            while total < 3000 // SLOW:
                n = 0
                for slot in range(16):
                    pieces = rng.randint(1, max(1, min(size - 2, 6)))
                    how = F.HOW_DIRECT if rng.random() < 0.6 else 0
                    need = pieces + 2
                    if q.num_free < need:
                        break
                    at = gpa + 4096 * slot
                    q.submit(F.T_IN, slot * 8,
                             [(at + 512 * i, 512) for i in range(pieces)], how=how | F.HOW_NO_KICK)
                    n += 1
                q.kick(False)
                for done in q.wait_all(n, WAIT):
                    self.assertEqual(done.status, F.S_OK)
                    self.assertEqual((done.len - 1) % 512, 0)
                total += n
            self.assertEqual(q.num_free, size)
            self.check_base(q, q.stop())
            fe.destroy()

    def check_base(self, q, base):
        """Nothing in flight: both places are the driver's."""
        self.assertEqual(base & 0xffff, q.avail_idx | q.avail_wrap << 15)
        self.assertEqual(base >> 16, q.last_used | q.used_wrap << 15)
        self.assertEqual(base & 0xffff, base >> 16)

    def test_one_request_fills_the_ring(self):
        t = self.target()
        fe = self.connect(self.disk(t), queue_size=16)
        q = fe.q[0]
        gpa = fe.alloc(16 * 512, 4096)
        for i in range(50):
            q.submit(F.T_IN, 0, [(gpa + 512 * j, 512) for j in range(14)], how=F.HOW_DIRECT)
            self.assertEqual(q.num_free, 0)
            self.assertEqual(q.wait(WAIT)[0].len, 14 * 512 + 1)
        self.check_base(q, q.stop())

    def test_out_of_order(self):
        # Used entries come in the order of completion and skip what their request occupied.
        t = self.target()
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name), queue_size=32)
        q = fe.q[0]
        gpa = fe.alloc(4096, 4096)
        for lap in range(40):
            self.inject(t, name, 'write', 'pending', num=2)
            for i in range(2):
                q.submit(F.T_OUT, 0, [(gpa, 512 * (i + 1))], cookie=100 + i)
            self.reads(q, 3 + lap % 3, gpa)
            done = q.wait_all(3 + lap % 3, WAIT)
            self.assertEqual([d.cookie for d in done], list(range(3 + lap % 3)))
            self.inject(t, name, 'clear', 'clear')
            self.assertEqual(sorted(d.cookie for d in q.wait_all(2, WAIT)), [100, 101])
        self.check_base(q, q.stop())

    def test_stop_and_continue(self):
        t = self.target()
        self.delay(t, self.malloc(t), 200)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), queue_size=32, indirect=True,
                          event_idx=True)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        for i in range(80):
            n = i % 9 + 1
            self.reads(q, n, gpa, F.HOW_DIRECT if i % 2 else 0)
            base = q.stop()
            # Taken and answered, or not taken: never in between.
            self.assertEqual(base & 0xffff, base >> 16)
            done = q.poll()
            self.assertEqual(base >> 16, q.last_used | q.used_wrap << 15)
            self.reads(q, 1, gpa, F.HOW_NO_KICK)
            q.start(base)
            self.assertEqual(len(done) + len(q.wait_all(n + 1 - len(done), WAIT)), n + 1)

    def test_any_start(self):
        t = self.target()
        path = self.disk(t)
        for place, wrap in ((0, 0), (1, 1), (63, 0), (63, 1), (40, 0)):
            fe = self.connect(path, queue_size=64, no_start=True)
            fe.negotiate()
            fe.add_mem_reg(0)
            q = fe.q[0]
            c = q.vq.contents
            c.avail_idx = c.last_used = place
            c.avail_wrap = c.used_wrap = bool(wrap)
            if not wrap:    # what an earlier lap left: all used
                for i in range(64):
                    q.set_packed(i, 0, 0, 0, F.DESC_AVAIL | F.DESC_USED)
            half = place | wrap << 15
            q.start(half << 16 | half)
            q.enable(True)
            for i in range(40):
                self.check_io(fe, seed=i)
            self.check_base(q, q.stop())
            fe.destroy()

    def test_base_of_a_ring_never_started(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True)
        fe.negotiate()
        fe.set_vring_base(2, 0x80058005)
        self.assertEqual(fe.get_vring_base(2), 0x80058005)
        self.check_io_after(fe)

    def check_io_after(self, fe):
        fe.add_mem_reg(0)
        fe.q[0].start()
        fe.q[0].enable(True)
        self.check_io(fe)

    def test_impossible_bases(self):
        t = self.target('0x3')
        path = self.disk(t)
        other = self.connect(path)
        for base in (0x00400040, 0x80408040, 0x7fff7fff, 0xffffffff, 0x80008040, 0x80408000):
            fe = self.connect(path, queue_size=64, no_start=True)
            fe.negotiate()
            with contextlib.suppress(OSError):
                fe.add_mem_reg(0)
                fe.q[0].start(base)
                fe.q[0].enable(True)
                self.assertGreater(fe.q[0].error(WAIT), 0)
            self.check_io(other)
            fe.destroy()


class Notify(Case):
    def spin(self, q):
        """All that is in flight ends, without a word about calls."""
        spindle.wait_until(lambda: q.poll() and q.in_flight == 0 or q.in_flight == 0, 5,
                           'completions', interval=0)

    def guest(self, path, **opts):
        # A first request: the call that a ring may make as it starts is behind us then.
        fe = self.connect(path, queue_size=64, **opts)
        self.check_io(fe)
        fe.q[0].call_pending(0.01)
        return fe

    def test_calls_suppressed_and_not(self):
        t = self.target()
        path = self.disk(t)
        for event_idx in (False, True):
            fe = self.guest(path, event_idx=event_idx)
            q = fe.q[0]
            gpa = fe.alloc(4096)
            for _ in range(5):
                q.set_driver_event(0, F.EVENT_DISABLE)
                q.call_pending(0)
                self.reads(q, 8, gpa)
                self.spin(q)
                self.assertEqual(q.call_pending(0.02), 0, 'a call that nobody wanted')
                q.set_driver_event(0, F.EVENT_ENABLE)
                self.reads(q, 8, gpa)
                self.assertGreater(q.call_pending(WAIT), 0)
                self.spin(q)
            fe.destroy()

    def test_call_at_a_place(self):
        # EVENT_DESC: a call when that place is used, and none before or after.
        t = self.target()
        fe = self.guest(self.disk(t), event_idx=True, indirect=True)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        for _ in range(30):
            at, wrap = q.last_used + 5, q.used_wrap
            if at >= 64:
                at, wrap = at - 64, not wrap
            q.set_driver_event(at | wrap << 15, F.EVENT_DESC)
            q.call_pending(0)
            for _ in range(5):
                self.reads(q, 1, gpa)
                self.spin(q)
            self.assertEqual(q.call_pending(0.002), 0, 'a call before its place')
            self.reads(q, 1, gpa)
            self.assertGreater(q.call_pending(WAIT), 0, 'no call at its place')
            self.spin(q)
            self.reads(q, 2, gpa)
            self.spin(q)
            self.assertEqual(q.call_pending(0.002), 0, 'a call after its place')

    def test_asleep_and_woken(self):
        # Device and driver both sleep; neither a kick nor a call is lost.
        t = self.target('0x1', '--poll-us', '10')
        path = self.disk(t)
        for event_idx in (False, True):
            fe = self.connect(path, queue_size=32, event_idx=event_idx, indirect=True)
            q = fe.q[0]
            gpa = fe.alloc(4096)
            for i in range(400 // SLOW):
                n = i % 5 + 1
                self.reads(q, n, gpa)
                wait_called(q, n)
                if i % 16 == 0:
                    time.sleep(0.002)
            self.assertLess(q.kicks, 400 * 5)
            fe.destroy()

    def test_a_polling_device_wants_no_kicks(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        self.check_io(fe)
        self.assertEqual(fe.q[0].device_event[1], F.EVENT_DISABLE)

    def test_garbage_in_the_driver_area(self):
        t = self.target()
        fe = self.connect(self.disk(t), queue_size=32, event_idx=True, no_call_fd=True)
        q = fe.q[0]
        rng = random.Random(3)
        gpa = fe.alloc(4096)
        for _ in range(300):
            q.set_driver_event(rng.choice((0, 0x7fff, 0xffff, 32, 0x8020, rng.randrange(65536))),
                               rng.choice((0, 1, 2, 3, 0xffff, 0xfffe)))
            self.reads(q, rng.randint(1, 8), gpa, F.HOW_NO_KICK)
            q.kick()
            self.spin(q)


class Hostile(Case):
    """A ring that breaks the rules is broken: the error event, and no more service until it is
    reset. Nobody else notices."""

    def setUp(self):
        self.t = self.target('0x3')
        self.stuck = self.error(self.t, self.malloc(self.t))
        self.path = self.ctrlr(self.t, 'c0', self.stuck)
        self.other = self.connect(self.path, queue_size=32)

    def guest(self, **opts):
        # No in-flight region: that would tell where the ring stands after a reset.
        fe = self.connect(self.path, queue_size=32, mem_size=2 * MIB, no_inflight=True, **opts)
        self.check_io(fe)
        fe.gpa = fe.alloc(4096, 4096)
        fe.mem_write(fe.gpa, struct.pack('<IIQ', F.T_IN, 0, 0))
        return fe

    def put(self, fe, descs):
        """Raw descriptors (addr, len, id, flags) from where the driver stands; the first is made
        available last."""
        q = fe.q[0]
        at, wrap = q.avail_idx, q.avail_wrap
        todo = []
        for addr, length, ident, flags in descs:
            todo.append((at, addr, length, ident, flags ^ q.avail_bits(wrap)))
            at += 1
            if at == q.size:
                at, wrap = 0, not wrap
        for d in todo[1:] + todo[:1]:
            q.set_packed(*d)
        q.kick()

    def good(self, fe, ident=0, then=0):
        """A read of one sector: what `descs` of a case begins or ends with."""
        g = fe.gpa
        return [(g, 16, ident, F.DESC_NEXT), (g + 512, 512, ident, F.DESC_NEXT | F.DESC_WRITE),
                (g + 100, 1, ident, F.DESC_WRITE | then)]

    def broken(self, fe):
        q = fe.q[0]
        self.assertGreater(q.error(WAIT), 0, 'no error event')
        self.check_io(self.other)
        self.assertTrue(self.t.running())
        # The driver resets its device and is served again.
        fe.stop()
        q.reset()
        q.start()
        q.enable(True)
        self.check_io(fe)
        fe.destroy()

    def test_bad_chains(self):
        g = self.guest().gpa
        end = 2 * MIB
        n, w, i = F.DESC_NEXT, F.DESC_WRITE, F.DESC_INDIRECT
        for name, descs in {
                'longer than the ring': [(g, 16, 0, n)] * 32,
                'all of it and the next lap': [(g, 16, 0, n)] * 40,
                'id beyond the ring': [(g, 16, 32, n), (g, 1, 32, w)],
                'id 65535': [(g, 16, 65535, n), (g, 1, 65535, w)],
                'no status byte': [(g, 16, 0, n), (g, 512, 0, 0)],
                'readable after writable': [(g, 16, 0, n), (g, 1, 0, n | w), (g, 16, 0, 0)],
                'zero length': [(g, 16, 0, n), (g, 0, 0, n | w), (g, 1, 0, w)],
                'outside': [(g, 16, 0, n), (end, 1, 0, w)],
                'across the end': [(g, 16, 0, n), (end - 1, 2, 0, w)],
                'address wraps': [(g, 16, 0, n), (2 ** 64 - 1, 2, 0, w)],
                'indirect not negotiated': [(g, 16, 0, i)],
                }.items():
            with self.subTest(name):
                fe = self.guest()
                self.put(fe, descs)
                self.broken(fe)

    def test_bad_indirect(self):
        n, w, i = F.DESC_NEXT, F.DESC_WRITE, F.DESC_INDIRECT
        for name, make in {
                'empty': lambda g: [(g, 0, 0, i)],
                'odd length': lambda g: [(g + 1024, 47, 0, i)],
                'cut off': lambda g: [(g + 1024, 15, 0, i)],
                'outside': lambda g: [(2 * MIB - 16, 32, 0, i)],
                'address wraps': lambda g: [(2 ** 64 - 16, 32, 0, i)],
                'far too long': lambda g: [(0, 2 * MIB, 0, i)],
                'length 4 GiB': lambda g: [(0, 2 ** 32 - 16, 0, i)],
                'with next': lambda g: [(g + 1024, 48, 0, i | n), (g, 1, 0, w)],
                'in a chain': lambda g: [(g, 16, 0, n), (g + 1024, 48, 0, i)],
                'nested': lambda g: [(g + 2048, 48, 0, i)],
                'of itself': lambda g: [(fe.q[0].desc_gpa, 16 * 32, 0, i)],
                'no status': lambda g: [(g + 1024, 16, 0, i)],
                }.items():
            with self.subTest(name):
                fe = self.guest(indirect=True)
                g = fe.gpa
                for at, flags in ((1024, 0), (2048, i)):
                    for k, d in enumerate(self.good(fe)):
                        fe.mem_write(g + at + 16 * k, struct.pack(
                            '<QIHH', d[0], d[1], 0, (d[3] & w) | flags))
                self.put(fe, make(g))
                self.broken(fe)

    def test_id_in_use(self):
        fe = self.guest()
        self.inject(self.t, self.stuck, 'read', 'pending', num=1)
        self.put(fe, self.good(fe, 5) + self.good(fe, 5))
        self.assertGreater(fe.q[0].error(WAIT), 0)
        self.inject(self.t, self.stuck, 'clear', 'clear')
        self.check_io(self.other)

    def test_id_of_one_that_ends_at_once(self):
        # Its used entry is not written yet, and what the in-flight region has of it goes by the id.
        fe = self.connect(self.path, queue_size=32, mem_size=2 * MIB)
        self.check_io(fe)
        g = fe.alloc(4096, 4096)
        fe.mem_write(g, struct.pack('<IIQ', F.T_IN, 0, 0))
        fe.mem_write(g + 1024, struct.pack('<IIQ', 0x99, 0, 0))
        fe.gpa = g
        unknown = [(g + 1024, 16, 5, F.DESC_NEXT)]
        unknown += [(g + 512, 16, 5, F.DESC_NEXT | F.DESC_WRITE)] * 8
        unknown += [(g + 100, 1, 5, F.DESC_WRITE)]
        self.put(fe, unknown + self.good(fe, 5))
        self.assertGreater(fe.q[0].error(WAIT), 0)
        self.check_io(self.other)

    def test_more_than_the_ring_holds(self):
        # A device that never answers, and a driver that makes the next lap available.
        fe = self.guest(indirect=False)
        q = fe.q[0]
        self.inject(self.t, self.stuck, 'read', 'pending', num=100)
        chain = []
        for i in range(10):
            chain += self.good(fe, i)
        self.put(fe, chain)
        time.sleep(0.02)
        at = (q.avail_idx + 30) % 32
        wrap = q.avail_wrap ^ (q.avail_idx + 30 >= 32)
        for k, d in enumerate((self.good(fe, 11) + self.good(fe, 12))[::-1]):
            pos = (at + 5 - k) % 32
            lap = wrap ^ (at + 5 - k >= 32)
            q.set_packed(pos, *d[:3], d[3] ^ q.avail_bits(lap))
        q.kick()
        self.assertGreater(q.error(WAIT), 0)
        self.inject(self.t, self.stuck, 'clear', 'clear')
        self.check_io(self.other)

    def test_not_available(self):
        # Flags of the wrong lap, or of neither: nothing to do, nothing wrong.
        fe = self.guest()
        q = fe.q[0]
        bits = q.avail_bits()
        for wrong in (0, F.DESC_AVAIL | F.DESC_USED, bits ^ (F.DESC_AVAIL | F.DESC_USED)):
            at = q.avail_idx
            good = self.good(fe)
            for k in (2, 1):
                q.set_packed(at + k, *good[k][:3], good[k][3] | bits)
            q.set_packed(at, *good[0][:3], good[0][3] | wrong)
            q.kick()
            time.sleep(0.01)
            self.assertEqual(q.error(0), 0)
            self.assertEqual(q.get_packed(at)[3], good[0][3] | wrong)
        self.check_io(fe)

    def test_reserved_flags(self):
        # Bits the specification reserves are not ours to judge; AVAIL of later ones neither.
        fe = self.guest()
        q = fe.q[0]
        reserved = 0x7f78
        self.put(fe, [(a, n, i, f | reserved) for a, n, i, f in self.good(fe, 7)])
        at = q.avail_idx
        spindle.wait_until(lambda: q.get_packed(at)[3] & 0x8080 in (
            0 if not q.avail_wrap else 0x8080,), 5, 'the used entry')
        self.assertEqual(q.get_packed(at)[1:3], (513, 7))
        self.assertEqual(fe.mem_read(fe.gpa + 100, 1), b'\0')

    def test_areas_outside(self):
        fe = self.guest()
        q = fe.q[0]
        q.stop()
        for desc, driver, device in ((1 << 40, 0, 0), (0, 1 << 40, 0), (0, 0, 1 << 40),
                                     ((1 << 64) - 64, 0, 0), (8, 0, 0), (0, 1, 0), (0, 0, 2)):
            with self.subTest(desc=desc, driver=driver, device=device):
                def place(gpa, change):
                    return change if change >= 1 << 40 else fe.uva(gpa) + change
                fe.set_vring_base(0, F.PACKED_START)
                fe.set_vring_addr(0, place(q.desc_gpa, desc), place(q.used_gpa, device),
                                  place(q.avail_gpa, driver))
                fe.set_vring_fd(F.SET_VRING_KICK, 0, q.kick_fd)
                self.assertGreater(q.error(WAIT), 0)
                fe.get_vring_base(0)
        self.check_io(self.other)

    def test_areas_at_the_very_end(self):
        # No byte beyond what each needs.
        fe = self.connect(self.path, queue_size=32, mem_size=MIB, no_start=True)
        fe.negotiate()
        fe.add_mem_reg(0)
        q, c = fe.q[0], fe.q[0].vq.contents
        c.desc_gpa, c.avail_gpa, c.used_gpa = MIB - 16 - 512, MIB - 8, MIB - 4
        for name in ('desc', 'avail', 'used'):
            setattr(c, name, F.lib().fe_gpa(fe._p, getattr(c, name + '_gpa'), 4))
        fe.mem_write(MIB - 528, bytes(528))
        q.start()
        q.enable(True)
        for i in range(50):
            self.check_io(fe, seed=i)

    @spindle.timeout(90)
    def test_random_rings(self):
        # Anything at all, while the device looks.
        rng = random.Random(11)
        for seed in range(12 // SLOW):
            fe = self.guest(indirect=True, event_idx=True)
            q = fe.q[0]
            gpas = [fe.gpa, q.desc_gpa, 2 * MIB - 8, 2 ** 63, q.scratch_gpa]
            end = time.monotonic() + 0.15
            while time.monotonic() < end:
                pos = rng.randrange(32)
                flags = rng.choice((0, 1, 2, 3, 4, 5, 6, 7)) | rng.choice(
                    (0, F.DESC_AVAIL, F.DESC_USED, F.DESC_AVAIL | F.DESC_USED))
                q.set_packed(pos, rng.choice(gpas) + rng.randrange(64),
                             rng.choice((0, 1, 16, 512, 4096, 2 ** 32 - 1)),
                             rng.choice((0, 1, pos, 31, 32, 65535)), flags)
                if rng.random() < 0.1:
                    q.kick()
                if rng.random() < 0.02:
                    with contextlib.suppress(OSError):
                        fe.stop()
                        q.reset()
                        q.start()
                        q.enable(True)
            fe.destroy()
            self.assertTrue(self.t.running())
        self.check_io(self.other)


if __name__ == '__main__':
    spindle.run_tests()
