#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Hostile guests and front ends. A bad request gets a status byte. A bad ring or chain: that queue
is broken, its error eventfd signalled, one line logged, everything else goes on, and the queue
works again once it has been reset. A bad message: that session is closed."""
import os
import random
import struct
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, spindle

IN = struct.pack('<IIQ', F.T_IN, 0, 0)
OUT = struct.pack('<IIQ', F.T_OUT, 0, 0)
LINK, WRITE, INDIRECT = F.DESC_NEXT, F.DESC_WRITE, F.DESC_INDIRECT
FAR = 1 << 50           # no memory there


class Rings(VhostCase):
    """Each fault on queue 0 of a session with two queues, beside another session."""

    def setUp(self):
        self.t = self.target('0x3')
        path = self.disk(self.t)
        self.other = self.connect(path)

    def victim(self, **opts):
        fe = self.connect(self.t.path('c0'), queues=2, style='qemu11', **opts)
        self.check_io(fe, q=0)
        self.header = fe.alloc(4096, 64)
        self.data = self.header + 512
        self.status = self.header + 32
        fe.mem_write(self.header, IN)
        return fe

    def chain(self, q, *descs, head=0, start=0):
        """Raw descriptors (addr, len, flags, next) from slot `start`, then push `head`."""
        for i, (addr, length, flags, after) in enumerate(descs):
            q.set_desc(start + i, addr, length, flags, after)
        q.push_head(head, self.status)
        q.kick()

    def lines(self, name):
        return [line for line in self.t.log().splitlines() if f' {name}: ' in line]

    def check_broken(self, fe):
        q = fe.q[0]
        self.assertEqual(q.error(WAIT), 1, 'the error eventfd was not signalled once')
        name = self.sessions(self.t)[-1]['name'] + '.q0'
        self.t.wait_log(f'{name}: ')
        used = q.used_idx
        # Its memory changes; but that is not the driver's doing.
        fe.remove_region(fe.add_region(F.region(1 << 40, 2 * MIB)))
        for i in range(3):
            self.check_io(fe, q=1, seed=i)
            self.check_io(self.other, seed=i)
            q.kick()
        self.assertEqual(q.used_idx, used, 'a broken queue is still served')
        self.assertEqual(q.error(0), 0)
        lines = self.lines(name)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn('broken', lines[0])
        # Set up anew it works.
        q.stop()
        q.reset()
        q.start(0)
        q.enable(True)
        self.check_io(fe, q=0)
        self.check_io(fe, q=1)
        self.assertEqual(q.error(0), 0)
        fe.destroy()
        self.wait_sessions(self.t, 1)

    def data_descs(self, change=()):
        """Header, 512 bytes of data, status in slots 0, 1, 2; change: {slot: desc}."""
        descs = [(self.header, 16, LINK, 1), (self.data, 512, LINK | WRITE, 2),
                 (self.status, 1, WRITE, 0)]
        for slot, desc in dict(change).items():
            descs[slot] = desc
        return descs

    def test_avail_index_jumps(self):
        for jump in (129, 1000, 0x8000, 0xffff):
            with self.subTest(jump=jump):
                fe = self.victim()
                q = fe.q[0]
                q.set_avail_idx(q.avail_idx + jump)
                q.kick()
                self.check_broken(fe)

    def test_head_out_of_range(self):
        for head in (128, 129, 0x7fff, 0xffff):
            with self.subTest(head=head):
                fe = self.victim()
                fe.q[0].push_head(head)
                fe.q[0].kick()
                self.check_broken(fe)

    def test_head_out_of_range_after_good_ones(self):
        # What came before it in the same batch is served.
        fe = self.victim()
        q = fe.q[0]
        used = q.used_idx
        for _ in range(5):
            q.submit(F.T_FLUSH, 0, how=F.HOW_NO_PUBLISH)
        q.set_avail(q.avail_idx, 200)
        q.set_avail_idx(q.avail_idx + 1)
        q.kick()
        self.assertEqual([d.status for d in q.wait_all(5, WAIT)], [F.S_OK] * 5)
        self.assertEqual(q.used_idx, (used + 5) & 0xffff)
        self.check_broken(fe)

    def test_loop(self):
        fe = self.victim()
        self.chain(fe.q[0], (self.header, 16, LINK, 0))
        self.check_broken(fe)
        fe = self.victim()
        self.chain(fe.q[0], (self.header, 16, LINK, 1), (self.data, 16, LINK, 2),
                   (self.data, 16, LINK, 0))
        self.check_broken(fe)
        fe = self.victim(indirect=True)
        table = fe.alloc(64)
        fe.write_desc(table, self.header, 16, LINK, 1)
        fe.write_desc(table + 16, self.data, 512, LINK | WRITE, 1)
        self.chain(fe.q[0], (table, 32, INDIRECT, 0))
        self.check_broken(fe)

    def test_next_out_of_range(self):
        for after in (128, 0xffff):
            fe = self.victim()
            self.chain(fe.q[0], (self.header, 16, LINK, after))
            self.check_broken(fe)
        fe = self.victim(indirect=True)
        table = fe.alloc(64)
        fe.write_desc(table, self.header, 16, LINK, 2)
        fe.write_desc(table + 16, self.status, 1, WRITE, 0)
        self.chain(fe.q[0], (table, 32, INDIRECT, 0))
        self.check_broken(fe)

    def test_indirect_in_indirect(self):
        fe = self.victim(indirect=True)
        table, inner = fe.alloc(64), fe.alloc(64)
        fe.write_desc(inner, self.header, 16, LINK, 1)
        fe.write_desc(inner + 16, self.status, 1, WRITE, 0)
        fe.write_desc(table, inner, 32, INDIRECT, 0)
        self.chain(fe.q[0], (table, 16, INDIRECT, 0))
        self.check_broken(fe)
        fe = self.victim(indirect=True)     # a table that names itself
        table = fe.alloc(64)
        fe.write_desc(table, table, 16, INDIRECT, 0)
        self.chain(fe.q[0], (table, 16, INDIRECT, 0))
        self.check_broken(fe)

    def test_bad_indirect(self):
        for length, flags in ((0, INDIRECT), (15, INDIRECT), (17, INDIRECT), (8, INDIRECT),
                              (0xfffffff0, INDIRECT), (32, INDIRECT | LINK)):
            with self.subTest(length=length, flags=flags):
                fe = self.victim(indirect=True)
                table = fe.alloc(64)
                fe.write_desc(table, self.header, 16, LINK, 1)
                fe.write_desc(table + 16, self.status, 1, WRITE, 0)
                self.chain(fe.q[0], (table, length, flags, 1), (self.status, 1, WRITE, 0))
                self.check_broken(fe)

    def test_indirect_not_negotiated(self):
        fe = self.victim()
        table = fe.alloc(64)
        fe.write_desc(table, self.header, 16, LINK, 1)
        fe.write_desc(table + 16, self.status, 1, WRITE, 0)
        self.chain(fe.q[0], (table, 32, INDIRECT, 0))
        self.check_broken(fe)

    def test_indirect_table_outside_memory(self):
        end = 64 * MIB
        for address in (FAR, end - 16, (1 << 64) - 16, (1 << 64) - 1):
            with self.subTest(address=address):
                fe = self.victim(indirect=True)
                self.chain(fe.q[0], (address, 32, INDIRECT, 0))
                self.check_broken(fe)

    def test_endless_indirect_table(self):
        # A whole 64 MiB table of good descriptors.
        fe = self.victim(indirect=True)
        table = fe.alloc(16 * 4000, 16)
        for i in range(4000):
            fe.write_desc(table + 16 * i, self.header, 16, LINK, (i + 1) & 0xffff)
        self.chain(fe.q[0], (table, 16 * 4000, INDIRECT, 0))
        self.check_broken(fe)

    def test_zero_length(self):
        fe = self.victim()
        self.chain(fe.q[0], *self.data_descs({1: (self.data, 0, LINK | WRITE, 2)}))
        self.check_broken(fe)
        fe = self.victim()
        self.chain(fe.q[0], *self.data_descs({0: (self.header, 0, LINK, 1)}))
        self.check_broken(fe)
        fe = self.victim()
        self.chain(fe.q[0], *self.data_descs({2: (self.status, 0, WRITE, 0)}))
        self.check_broken(fe)

    def test_outside_memory(self):
        end = 64 * MIB
        for address, length in ((FAR, 512), (end, 512), (end - 511, 512), (end - 512, 0xfffffe00),
                                ((1 << 64) - 512, 512), ((1 << 64) - 511, 512),
                                ((1 << 64) - 1, 1), ((1 << 63), 0xffffffff)):
            for slot in range(3):
                with self.subTest(address=address, length=length, slot=slot):
                    fe = self.victim()
                    flags, after = ((LINK, 1), (LINK | WRITE, 2), (WRITE, 0))[slot]
                    self.chain(fe.q[0], *self.data_descs({slot: (address, length, flags, after)}))
                    self.check_broken(fe)
                time.sleep(0.12)    # the log is limited to ten such lines a second

    def test_wrong_direction(self):
        fe = self.victim()      # readable after writable
        self.chain(fe.q[0], (self.header, 16, LINK, 1), (self.data, 512, LINK | WRITE, 2),
                   (self.data, 512, LINK, 3), (self.status, 1, WRITE, 0))
        self.check_broken(fe)
        fe = self.victim()      # the status byte is not writable
        self.chain(fe.q[0], (self.header, 16, LINK, 1), (self.data, 512, LINK | WRITE, 2),
                   (self.status, 1, 0, 0))
        self.check_broken(fe)

    def test_missing_status(self):
        fe = self.victim()
        self.chain(fe.q[0], (self.header, 16, 0, 0))
        self.check_broken(fe)
        fe = self.victim()
        fe.mem_write(self.header, OUT)
        self.chain(fe.q[0], (self.header, 16, LINK, 1), (self.data, 512, 0, 0))
        self.check_broken(fe)

    def test_same_head_twice(self):
        self.delay(self.t, self.malloc(self.t, 'm1'), 300000)
        path = self.ctrlr(self.t, 'c1', 'D_m1')
        fe = self.connect(path, style='qemu11')
        q = fe.q[0]
        gpa = fe.alloc(512)
        head = q.submit(F.T_IN, 0, [(gpa, 512)])
        q.set_avail(q.avail_idx, head)
        q.set_avail_idx(q.avail_idx + 1)
        q.kick()
        self.assertEqual(q.error(WAIT), 1)
        # What was in flight ends as ever.
        self.assertEqual([d.status for d in q.wait_all(1, WAIT)], [F.S_OK])
        self.assertEqual(q.used_idx, 1)
        q.stop()
        q.reset()
        q.start(0)
        self.check_io(fe)

    def test_broken_in_every_mode(self):
        for args in (('--interrupt-mode',), ('--poll-us', '50')):
            self.t = self.target('0x3', *args)
            self.other = self.connect(self.disk(self.t))
            fe = self.victim()
            self.chain(fe.q[0], (self.header, 16, LINK, 0))
            self.check_broken(fe)

    def test_guest_cannot_flood_the_log(self):
        for _ in range(300):
            fe = self.connect(self.t.path('c0'), style='qemu11', mem_size=MIB, queue_size=8)
            fe.q[0].push_head(99)
            fe.q[0].kick()
            self.assertEqual(fe.q[0].error(WAIT), 1)
            fe.destroy()
        self.assertLess(len(self.t.log().splitlines()), 200)
        self.check_io(self.other)

    def test_random_rings(self):
        # Garbage in the rings: any end is good but a dead or deaf target.
        rng = random.Random(int(os.environ.get('SEED', '5')))
        for round_ in range(60 // SLOW + 5):
            fe = self.connect(self.t.path('c0'), style='qemu11', indirect=True, mem_size=2 * MIB,
                              event_idx=rng.random() < 0.5, queue_size=16)
            q = fe.q[0]
            places = [fe.alloc(4096, 4096) for _ in range(8)]
            for place in places:
                fe.mem_write(place, rng.choice((IN, OUT, rng.randbytes(16))))
                for slot in range(1, 64):
                    fe.write_desc(place + 16 * slot, *self.random_desc(rng, places))
            for slot in range(16):
                q.set_desc(slot, *self.random_desc(rng, places))
            for _ in range(rng.randrange(1, 16)):
                q.set_avail(q.avail_idx, rng.choice((rng.randrange(16), rng.randrange(16),
                                                     rng.randrange(0x10000))))
                q.set_avail_idx(q.avail_idx + rng.choice((1, 1, 1, 1, 3, 20)))
                q.kick()
            if round_ % 2:
                fe.get_vring_base(0)
            self.check_io(self.other, seed=round_, sector=30000)
            fe.destroy()
        self.wait_sessions(self.t, 1)

    @staticmethod
    def random_desc(rng, places):
        address = rng.choice(places) + rng.choice((0, 0, 16, rng.randrange(4096)))
        if rng.random() < 0.02:
            address = rng.randrange(1 << 64)
        return (address, rng.choice((16, 16, 512, 1, 32, rng.randrange(5000))),
                rng.choice((LINK, LINK, LINK | WRITE, WRITE, 0, INDIRECT, rng.randrange(8))),
                rng.choice((rng.randrange(16), rng.randrange(16), rng.randrange(0x10000))))


class Requests(VhostCase):
    def test_short_header(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        gpa = fe.alloc(1024)
        fe.mem_write(gpa, IN)
        for segs in ([], [(gpa, 1, False)], [(gpa, 15, False)],
                     [(gpa, 8, False), (gpa + 8, 7, False)]):
            fe.q[0].submit_chain(segs + [(gpa + 64, 1, True)], status_gpa=gpa + 64)
            done = fe.q[0].wait_all(1, WAIT)[0]
            self.assertEqual((done.status, done.len), (F.S_IOERR, 1), segs)
            fe.q[0].submit_chain(segs + [(gpa + 64, 513, True)], status_gpa=gpa + 64 + 512)
            self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_IOERR, segs)
        self.check_io(fe)
        self.assertEqual(fe.q[0].error(0), 0)

    def test_data_in_the_wrong_direction(self):
        # An IN without writable data and an OUT without readable: nothing to transfer.
        t = self.target()
        fe = self.connect(self.disk(t))
        fe.write(0, b'd' * 512)
        for rtype, out, in_len in ((F.T_IN, b'z' * 512, 0), (F.T_OUT, b'', 512)):
            status, data = fe.request(rtype, 0, out, in_len)
            self.assertIn(status, (F.S_OK, F.S_IOERR))
        self.assertEqual(fe.read(0, 512), b'd' * 512)
        # Both: the type decides.
        status, data = fe.request(F.T_IN, 0, b'y' * 512, 512)
        if status == F.S_OK:
            self.assertEqual(data, b'd' * 512)
        self.assertEqual(fe.read(0, 512), b'd' * 512)

    def test_status_over_the_header(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        gpa = fe.alloc(64)
        for _ in range(10):
            fe.mem_write(gpa, struct.pack('<IIQ', F.T_FLUSH, 0, 0))
            fe.q[0].submit_chain([(gpa, 16, False), (gpa, 16, True)])
            fe.q[0].wait_all(1, WAIT)
        self.check_io(fe)

    def test_data_over_the_rings(self):
        # A read into its own used ring: nobody's fault but the guest's, and nobody else's loss.
        t = self.target()
        path = self.disk(t)
        other = self.connect(path)
        fe = self.connect(path)
        fe.write(0, b'\xff' * 8192)
        q = fe.q[0]
        for gpa in (q.avail_gpa, q.used_gpa, q.desc_gpa):
            q.submit(F.T_IN, 0, [(gpa & ~4095, 4096)])
            q.kick()
            time.sleep(0.02)
        self.check_io(other)
        fe.destroy()
        self.wait_sessions(t, 1)


if __name__ == '__main__':
    spindle.run_tests()
