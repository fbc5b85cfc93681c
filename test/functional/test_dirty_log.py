#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The dirty log of a live migration: exactly the pages that the target has written, no more, from
the answer that starts it to the answer that ends it.

Rings of 1024 entries put the parts of a used ring on pages of their own; header, data and status
byte of each request lie on pages of their own as well."""
import contextlib
import os
import random
import struct
import threading
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, pattern, spindle

PAGE = 4096
SIZE = 1024
HIGH = 1 << 32      # of a region above 4 GiB


def pages(gpa, length=1):
    return set(range(gpa // PAGE, (gpa + length - 1) // PAGE + 1))


class Case(VhostCase):
    packed = False

    def guest(self, path, **opts):
        opts.setdefault('regions', [F.region(0, 16 * MIB), F.region(16 * MIB, MIB),
                                    F.region(HIGH, MIB)])
        opts.setdefault('ring_region', 0)
        fe = self.connect(path, queue_size=SIZE, packed=self.packed, **opts)
        self.assertTrue(fe.has_protocol(F.PF_LOG_SHMFD))
        self.check_io(fe)
        fe.hdr, fe.status = fe.alloc(PAGE, PAGE, 0), fe.alloc(PAGE, PAGE, 0)
        fe.data = fe.alloc(64 * PAGE, PAGE, 0)
        fe.seen = set()
        return fe

    def disk_of(self, t, name='c0', bdev=None):
        return self.ctrlr(t, name, bdev or self.malloc(t, mib=2), packed_ring=True)

    def submit(self, fe, rtype, segs, sector=0, q=0, status=None):
        """A request whose parts are where this suite wants them. Its used pages in .used."""
        queue = fe.q[q]
        status = status or fe.status
        fe.mem_write(fe.hdr, struct.pack('<IIQ', rtype, 0, sector))
        write = rtype in (F.T_IN, F.T_GET_ID)
        chain = [(fe.hdr, 16)] + [(g, n, write) for g, n in segs] + [(status, 1, True)]
        queue.submit_chain(chain, status_gpa=status, how=F.HOW_DIRECT)

    def used_pages(self, q):
        """Where the next used entry goes, and the index that tells of it."""
        if self.packed:
            return pages(q.desc_gpa + 16 * q.last_used, 16)
        return pages(q.used_gpa + 4 + 8 * (q.last_used % SIZE), 8) | pages(q.used_gpa + 2, 2)

    @staticmethod
    def asked_pages(fe):
        """Where a queue that has nothing to do asks to be kicked, and later does so no more."""
        asked = set()
        for q in fe.q:
            asked |= pages(q.used_gpa, 4) | pages(q.used_gpa + 4 + 8 * SIZE, 2)
        return asked

    def expect(self, fe, want, more=()):
        """These pages become dirty, and none else but perhaps some of `more`."""
        more = set(more) | self.asked_pages(fe)
        got = set()

        def all_there():
            got.update(fe.log_take())
            return got >= want
        try:
            spindle.wait_until(all_there, 2, 'the log', interval=0.001)
        except AssertionError:
            self.assertEqual(got, want, 'missing pages')
        time.sleep(0.003)
        got.update(fe.log_take())
        self.assertEqual(got - more, want - more)

    def clean(self, fe):
        """What earlier messages and requests have yet to do is out of the way."""
        fe.get_features()
        time.sleep(0.005 * SLOW)
        fe.log_take()

    def one(self, fe, rtype, segs, want, sector=0, status=F.S_OK, more=(), q=0):
        want = set(want) | pages(fe.status) | self.used_pages(fe.q[q])
        self.submit(fe, rtype, segs, sector, q)
        self.assertEqual(fe.q[q].wait(WAIT)[0].status, status)
        self.expect(fe, want, more)


class Pages(Case):
    def test_reads(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        self.clean(fe)
        d = fe.data
        edge = 16 * MIB
        for segs in ([(d, 4096)], [(d, 512)], [(d + PAGE - 512, 512)], [(d + PAGE - 512, 1024)],
                     [(d + PAGE - 1, 512)], [(d + 1, 8192)], [(d, 16 * PAGE)],
                     [(d, 1), (d + 3 * PAGE - 1, 1), (d + 5 * PAGE - 1, 510)],
                     [(edge - 512, 1024)], [(edge - 1, 512)], [(edge, 512)],
                     [(HIGH, 512)], [(HIGH + MIB - 512, 512)], [(0x500000, 512), (HIGH + 5, 512)]):
            with self.subTest(segs=segs):
                self.one(fe, F.T_IN, segs, set().union(*(pages(g, n) for g, n in segs)))

    def test_what_is_not_written_is_not_logged(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        self.clean(fe)
        self.one(fe, F.T_OUT, [(fe.data, 16 * PAGE)], ())
        self.one(fe, F.T_FLUSH, [], ())
        fe.mem_write(fe.data, F.pack_range(0, 8))
        self.one(fe, F.T_DISCARD, [(fe.data, 16)], ())
        self.one(fe, F.T_WRITE_ZEROES, [(fe.data, 16)], ())

    def test_get_id(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        self.clean(fe)
        d = fe.data
        self.one(fe, F.T_GET_ID, [(d, 20)], pages(d))
        self.one(fe, F.T_GET_ID, [(d + PAGE - 10, 20)], pages(d) | pages(d + PAGE))
        self.one(fe, F.T_GET_ID, [(d + PAGE - 10, 10), (d + 5 * PAGE, 10)],
                 pages(d) | pages(d + 5 * PAGE))
        # Twenty bytes, however much room there is.
        self.one(fe, F.T_GET_ID, [(d + PAGE - 20, 8192)], pages(d))

    def test_failed_requests(self):
        t = self.target()
        bad = self.error(t, self.malloc(t, mib=2))
        fe = self.guest(self.disk_of(t, bdev=bad))
        fe.log_start()
        self.clean(fe)
        self.inject(t, bad, 'read', 'failure', num=1)
        d = fe.data
        self.one(fe, F.T_IN, [(d, PAGE)], (), status=F.S_IOERR, more=pages(d))
        self.one(fe, F.T_IN, [(d, PAGE)], (), sector=1 << 40, status=F.S_IOERR, more=pages(d))
        self.one(fe, 77, [(d, 512)], (), status=F.S_UNSUPP, more=pages(d))

    def test_used_entries_of_a_whole_lap(self):
        # Among them one that lies on two pages; the index is on the first page only.
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        self.clean(fe)
        q = fe.q[0]
        for _ in range(SIZE + 20):
            want = self.used_pages(q) | pages(fe.status)
            self.submit(fe, F.T_FLUSH, [])
            q.wait(WAIT)
            got = fe.log_take()
            end = time.monotonic() + 2 * SLOW
            while not got >= want and time.monotonic() < end:
                got |= fe.log_take()
            asked = self.asked_pages(fe)
            self.assertEqual(got - asked, want - asked)

    def test_without_the_rings_flag(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_create()
        fe.log_send_base()
        fe.log_set(True, rings=False)
        self.clean(fe)
        self.submit(fe, F.T_IN, [(fe.data, 512)])
        fe.q[0].wait(WAIT)
        self.expect(fe, pages(fe.data) | pages(fe.status))

    def test_sleeping_device(self):
        # It asks for kicks in guest memory as well.
        t = self.target('0x1', '--poll-us', '20')
        path = self.disk_of(t)
        for event_idx in (False, True):
            fe = self.guest(path, event_idx=event_idx)
            q = fe.q[0]
            fe.log_start()
            time.sleep(0.02)
            fe.log_take()
            ask = q.used_gpa if self.packed or not event_idx else q.used_gpa + 4 + 8 * SIZE
            want = pages(fe.status) | self.used_pages(q) | pages(ask, 4 if self.packed else 2)
            self.submit(fe, F.T_FLUSH, [])
            q.wait(WAIT)
            self.expect(fe, want)
            fe.destroy()

    def test_several_queues(self):
        t = self.target('0x3')
        fe = self.guest(self.disk_of(t), queues=4)
        fe.log_start()
        self.clean(fe)
        for q in (2, 0, 3, 1):
            self.one(fe, F.T_IN, [(fe.data + q * PAGE, 512)], pages(fe.data + q * PAGE), q=q)


class PagesPacked(Pages):
    packed = True


class SplitOnly(Case):
    def test_used_ring_is_logged_where_the_front_end_says(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        q = fe.q[0]
        fe.set_vring_addr(0, fe.uva(q.desc_gpa), fe.uva(q.used_gpa), fe.uva(q.avail_gpa),
                          flags=1, log=0x900000 + PAGE - 4)
        self.clean(fe)
        # The index is 2 bytes in, the entries begin 4 bytes in.
        entry = 0x900000 + PAGE - 4 + 4 + 8 * (q.last_used % SIZE)
        self.submit(fe, F.T_FLUSH, [])
        q.wait(WAIT)
        self.expect(fe, pages(fe.status) | pages(0x900000) | pages(entry, 8))


class Running(Case):
    """Switched, moved and ended while requests run."""

    def load(self, fe, stop):
        """Reads of random places into random places until told to stop; a thread's work."""
        rng = random.Random(4)
        q = fe.q[0]
        while not stop.is_set():
            while q.num_free >= 16 and q.in_flight < 32:
                q.submit(F.T_IN, rng.randrange(4096 - 24), [
                    (fe.data + 512 * rng.randrange(64 * 8 - 8), 512 * rng.randint(1, 8))
                    for _ in range(rng.randint(1, 3))], how=F.HOW_NO_KICK)
            q.kick(False)
            for c in q.poll():
                self.assertEqual(c.status, F.S_OK)
        if q.in_flight:
            q.wait_all(q.in_flight, WAIT)

    @contextlib.contextmanager
    def loaded(self, fe):
        stop = threading.Event()
        failed = []

        def work():
            try:
                self.load(fe, stop)
            except Exception as e:
                failed.append(e)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.assertEqual(failed, [])

    def migrated(self, us=0):
        """What a destination would have: pages copied when they were found dirty. All that only
        the target writes must be the same in the end."""
        t = self.target('0x3')
        bdev = self.malloc(t, mib=2)
        fe = self.guest(self.disk_of(t, bdev=self.delay(t, bdev, us) if us else bdev))
        for at in range(0, 2 * MIB, MIB):
            fe.write(at // 512, os.urandom(MIB), timeout=WAIT)
        q = fe.q[0]
        ring = (q.desc_gpa, 16 * SIZE) if self.packed else (q.used_gpa, 4 + 8 * SIZE)
        areas = [(fe.data, 64 * PAGE), ring]
        copy = {}

        def bring(numbers):
            for n in numbers:
                copy[n] = fe.mem_read(n * PAGE, PAGE)
        with self.loaded(fe):
            fe.log_start()
            bring(range(16 * MIB // PAGE))
            for _ in range(20):
                time.sleep(0.005)
                bring(n for n in fe.log_take() if n * PAGE < 16 * MIB)
        q.stop()
        last = fe.log_take()
        bring(n for n in last if n * PAGE < 16 * MIB)
        for gpa, length in areas:
            for n in sorted(pages(gpa, length)):
                self.assertEqual(copy[n] == fe.mem_read(n * PAGE, PAGE), True,
                                 f'page {n} of the area at {gpa:#x} was written and not logged')
        time.sleep(0.05)
        self.assertEqual(fe.log_take(), set())

    def test_a_copy_by_the_log_is_complete(self):
        self.migrated()

    def test_a_copy_with_a_slow_disk(self):
        self.migrated(us=3000)

    def test_switched_on_and_off(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        for i in range(20):
            fe.log_set(True)
            self.clean(fe)
            self.one(fe, F.T_IN, [(fe.data + PAGE * i, 512)], pages(fe.data + PAGE * i))
            fe.log_stop()
            self.clean(fe)
            self.submit(fe, F.T_IN, [(fe.data, 512)])
            fe.q[0].wait(WAIT)
            time.sleep(0.002)
            self.assertEqual(fe.log_take(), set())

    def test_switched_under_load(self):
        t = self.target('0x3')
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        with self.loaded(fe):
            for i in range(100 // SLOW):
                fe.log_set(i % 2 == 0, rings=i % 4 == 0)
                time.sleep(0.001)
            fe.log_stop()
            self.clean(fe)
            time.sleep(0.02)
            self.assertEqual(fe.log_take(), set())
            fe.log_set(True)
            spindle.wait_until(lambda: fe.log_take() & pages(fe.data, 64 * PAGE), 2, 'the log')

    def test_moved_under_load(self):
        # SET_LOG_BASE again: once it is answered the old log is not touched.
        t = self.target('0x3')
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        with self.loaded(fe):
            for _ in range(30 // SLOW):
                size = fe.c.log_size
                old = os.dup(fe.c.log_fd)
                fe.log_create(size)
                fe.log_send_base()
                os.pwrite(old, bytes(size), 0)
                time.sleep(0.003)
                self.assertEqual(os.pread(old, size, 0), bytes(size))
                os.close(old)
                spindle.wait_until(fe.log_take, 2, 'the new log', interval=0.001)

    def test_nothing_after_the_base(self):
        t = self.target()
        bdev = self.delay(t, self.malloc(t, mib=2), 20000)
        fe = self.guest(self.disk_of(t, bdev=bdev))
        fe.log_start()
        q = fe.q[0]
        for _ in range(5):
            for i in range(16):
                self.submit(fe, F.T_IN, [(fe.data + i * PAGE, 512)])
            base = q.stop()
            first = fe.log_take()
            self.assertTrue(first or not q.poll())
            time.sleep(0.05)
            self.assertEqual(fe.log_take(), set(), 'logged after GET_VRING_BASE was answered')
            q.start(base)
            if q.in_flight:
                q.wait_all(q.in_flight, WAIT)
            self.clean(fe)

    def test_rings_started_anew_go_on_logging(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        for i in range(5):
            q = fe.q[0]
            q.start(q.stop())
            fe.get_features()
            self.check_io(fe)
            self.clean(fe)
            self.one(fe, F.T_IN, [(fe.data, 512)], pages(fe.data))

    def test_memory_added_under_load(self):
        # The table that a read's pages are looked up in is replaced while it is under way.
        t = self.target('0x3')
        fe = self.guest(self.disk_of(t, bdev=self.null(t)))
        fe.log_start()
        q, under_way = fe.q[0], 0
        for i in range(150 // SLOW):
            for _ in range(60):
                q.submit(F.T_IN, 0, [(fe.data + 512 * k, 512) for k in range(8)])
            under_way += 60
            fe.add_region(F.region(HIGH + (i + 1) * 4 * MIB, MIB))
            while under_way > 20:
                under_way -= len(q.poll())
        q.wait_all(under_way, WAIT)

    def test_a_new_connection_has_no_log(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        fe.log_stop()
        fe.reconnect()
        self.check_io(fe)
        self.clean(fe)
        self.check_io(fe)
        self.assertEqual(fe.log_take(), set())


class RunningPacked(Running):
    packed = True


class Hostile(Case):
    def test_log_all_without_a_log(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_set(True)
        for i in range(5):
            self.check_io(fe, seed=i)
        fe.log_create()
        fe.log_send_base()
        self.clean(fe)
        self.one(fe, F.T_IN, [(fe.data, 512)], pages(fe.data))

    def test_log_smaller_than_the_memory(self):
        # What it has no bit for is not logged: not one byte beyond the size that was told.
        t = self.target()
        path = self.disk_of(t)
        for size in (1, 8, 100, 4095, 4096):
            fe = self.guest(path)
            fe.log_create(8 * PAGE)
            with contextlib.suppress(OSError):
                fe.set_log_base(size, 0, fe.c.log_fd)
                fe.log_set(True)
                self.clean(fe)
                # Pages on both sides of its end, and far from it.
                edge = size * 8 * PAGE
                spots = [g for g in (edge - 2 * PAGE, edge - PAGE, edge)
                         if 0x300000 <= g < 0xf00000]
                for gpa in spots + [0x800000, 15 * MIB, HIGH]:
                    self.submit(fe, F.T_IN, [(gpa, 4096)])
                    self.assertEqual(fe.q[0].wait(WAIT)[0].status, F.S_OK)
                time.sleep(0.005)
            for n in fe.log_take():
                self.assertLess(n, size * 8)
            self.assertTrue(t.running())
            fe.destroy()

    def test_bounds(self):
        t = self.target('0x3')
        path = self.disk_of(t)
        other = self.connect(path)
        top = 2 ** 64
        for size, offset in ((0, 0), (top - 1, 0), (top - PAGE, PAGE), (PAGE, top - PAGE),
                             (top - PAGE, top - PAGE), (top // 2, top // 2), (2 * PAGE, 0),
                             (PAGE, PAGE), (PAGE, 1 << 40), (1 << 50, 0), (1, PAGE)):
            with self.subTest(size=size, offset=offset):
                fe = self.guest(path)
                fe.log_create(PAGE)
                self.check_refused(fe.set_log_base, size, offset, fe.c.log_fd)
                self.check_io(other)
                fe.destroy()

    def test_offset(self):
        # Of any alignment: the log need not begin with the file.
        t = self.target()
        path = self.disk_of(t)
        for offset in (PAGE, 3 * PAGE, 8, 100, PAGE + 24):
            fe = self.guest(path)
            fe.log_create(16 * PAGE)
            fe.set_log_base(8 * PAGE, offset, fe.c.log_fd)
            fe.log_set(True, rings=False)
            fe.get_features()
            fe.log_take()
            self.submit(fe, F.T_IN, [(fe.data, 512)])
            fe.q[0].wait(WAIT)
            self.expect(fe, {n + 8 * offset for n in pages(fe.data) | pages(fe.status)})
            fe.destroy()

    def test_fds(self):
        t = self.target()
        path = self.disk_of(t)
        count = len(os.listdir(f'/proc/{t.pid}/fd'))
        pipe = os.pipe()
        for fds in ([], [pipe[0]], [1, 1]):
            fe = self.guest(path)
            fe.log_create()
            fe.send_raw(F.SET_LOG_BASE, struct.pack('<QQ', PAGE, 0),
                        fds=[fe.c.log_fd if fd == 1 else fd for fd in fds])
            self.check_closed(fe)
            fe.destroy()
        for fd in pipe:
            os.close(fd)
        self.wait_sessions(t, 0)
        self.check_fds(t, count)

    def test_log_address_nowhere(self):
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        q = fe.q[0]
        for log in (2 ** 64 - 1, 2 ** 64 - PAGE, 1 << 62, HIGH + MIB, 17 * MIB):
            fe.set_vring_addr(0, fe.uva(q.desc_gpa), fe.uva(q.used_gpa), fe.uva(q.avail_gpa),
                              flags=1, log=log)
            fe.get_features()
            for i in range(3):
                self.check_io(fe, seed=i)
        self.assertTrue(t.running())

    def test_truncated(self):
        # The front end takes the log's memory away: its own loss.
        t = self.target('0x3')
        path = self.disk_of(t)
        other = self.connect(self.disk_of(t, 'c1', self.malloc(t, 'm1', mib=2)))
        fe = self.guest(path)
        fe.log_start()
        self.check_io(fe)
        os.ftruncate(fe.c.log_fd, 0)
        with contextlib.suppress(OSError):
            fe.read(0, 4096, timeout=0.5)
        self.assertTrue(t.running())
        self.check_io(other)

    def test_front_end_sets_bits_itself(self):
        # Other bits of the same bytes are somebody else's: they stay.
        t = self.target()
        fe = self.guest(self.disk_of(t))
        fe.log_start()
        self.clean(fe)
        size = fe.c.log_size
        n = fe.data // PAGE
        bits = bytearray(b'\xff' * size)
        bits[n // 8] &= ~(1 << n % 8) & 0xff
        os.pwrite(fe.c.log_fd, bits, 0)
        self.submit(fe, F.T_IN, [(fe.data, 512)])
        fe.q[0].wait(WAIT)
        spindle.wait_until(lambda: os.pread(fe.c.log_fd, size, 0) == b'\xff' * size, 2, 'one bit')


class HostilePacked(Hostile):
    packed = True


if __name__ == '__main__':
    spindle.run_tests()
