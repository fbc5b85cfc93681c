#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Postcopy: a guest's I/O while parts of its memory are missing, and when they never come.

What the target has to keep apart: pages that are on their way make their queue wait, never a
reactor; a page that is taken away again ends the session; and no page is ever made up.
"""
import errno
import fcntl
import os
import signal
import struct
import time

import postcopy as P
from takeovercase import TakeoverCase
from vhostcase import F, MIB, SLOW, WAIT, VhostCase, need_huge_pages, pattern, spindle

PAGE = P.PAGE


def pagers(t):
    """The target's children: one for each guest in postcopy."""
    with open(f'/proc/{t.pid}/task/{t.pid}/children') as f:
        main = f.read().split()
    out = list(main)
    for tid in os.listdir(f'/proc/{t.pid}/task'):
        try:
            with open(f'/proc/{t.pid}/task/{tid}/children') as f:
                out += f.read().split()
        except FileNotFoundError:
            pass
    return sorted(set(out))


class Case(VhostCase):
    packed = False
    page = PAGE
    opts = {'mem_size': 32 * MIB}
    count = 16      # requests at a time
    withheld = 0.5  # seconds
    copies = True   # the reactor itself touches data

    def frontend(self, **opts):
        fe = F.Frontend(**{'packed': self.packed, 'timeout': WAIT, **self.opts, **opts})
        self.addCleanup(fe.destroy)
        return fe

    def setUp(self):
        super().setUp()
        if self.page != PAGE:
            need_huge_pages(48)
        self.t = self.target('0x1', '--log-level', 'INFO')
        self.path = self.ctrlr(self.t, 'c0', self.bdev(self.t), packed_ring=True)

    def bdev(self, t):
        return self.malloc(t, 'm0')

    def arrive(self, fe, path=None, **how):
        source = P.arrive(fe, path or self.path, self.page, **how)
        self.addCleanup(source.close)
        return source

    def check_ends(self, fe, source):
        """END is answered, and the pager goes; I/O goes on."""
        source.send_all()
        P.end(fe)
        self.check_io(fe, sector=64)
        spindle.wait_until(lambda: not pagers(self.t), 5, 'the pager is gone')


class Split(Case):
    copies = False
    withheld = 2

    def bdev(self, t):
        """The kernel reads and writes the guest's memory."""
        return self.file(t, 'f0')

    def test_everything_missing(self):
        """Rings as well: they are fetched before the queues start."""
        for table in (False, True):
            with self.subTest(table=table):
                fe = self.frontend()
                source = self.arrive(fe, take=Source_take_all, table=table)
                self.assertEqual(len(pagers(self.t)), 1)
                spindle.wait_until(lambda: self.sessions(self.t)[-1]['started'], WAIT, 'started')
                self.assertTrue(source.asked)
                self.check_io(fe)
                self.check_ends(fe, source)
                fe.close()
                self.wait_sessions(self.t, 0)

    def test_buffers_and_tables(self):
        """Written data, read data, status bytes and indirect tables in missing pages."""
        fe = self.frontend(indirect=True)
        source = self.arrive(fe)
        q = fe.q[0]
        count, size = self.count, 3 * PAGE
        for turn in range(3):
            jobs = []
            for i in range(count):
                table, out, status, data = (fe.alloc(max(size, self.page), self.page)
                                            for _ in range(4))
                write = turn % 2 == 0
                want = pattern(size, 100 * (turn // 2) + i)
                fe.mem_write(out, struct.pack('<IIQ', F.T_OUT if write else F.T_IN, 0, i * 24))
                fe.mem_write(data, want if write else bytes(size))
                fe.mem_write(status, b'\xff')
                q.submit_chain([(out, 16), (data, size, not write), (status, 1, True)],
                               table_gpa=table, status_gpa=fe.alloc(1), cookie=i,
                               how=F.HOW_INDIRECT | F.HOW_NO_PUBLISH | F.HOW_NO_KICK)
                for gpa, length in ((table, PAGE), (out, 16), (data, size), (status, 1)):
                    source.take(gpa, length)
                jobs.append((data, status, want))
            source.asked.clear()
            q.publish()
            q.kick()
            q.wait_all(count, WAIT)
            self.assertGreater(len(source.asked), count)
            # All of a request has come, or it would not have been begun.
            for data, status, want in jobs:
                self.assertEqual(fe.mem_read(status, 1), b'\0')
                self.assertEqual(fe.mem_read(data, size), want)
            if turn == 1:
                self.assertFalse(source.pages)
        self.check_ends(fe, source)

    def test_many_pages(self):
        """Requests of so many pages, none beside the next, that they are fetched in turns."""
        fe = self.frontend(queues=4, indirect=True, mem_size=64 * MIB)
        source = self.arrive(fe)
        per = 100 if self.page == PAGE else 2
        for q in fe.q:
            at = [fe.alloc(self.page, self.page) for _ in range(2 * per)][::2]
            for i, gpa in enumerate(at):
                fe.mem_write(gpa, pattern(PAGE, i))
            for gpa in at:
                source.take(gpa, PAGE)
            q.submit(F.T_OUT, q.index * 1024, [(gpa, PAGE) for gpa in at],
                     how=F.HOW_INDIRECT | F.HOW_NO_KICK)
        for q in fe.q:
            q.kick()
        for q in fe.q:
            self.assertEqual(q.wait(WAIT)[0].status, F.S_OK)
            self.assertEqual(fe.read(q.index * 1024, per * PAGE),
                             b''.join(pattern(PAGE, i) for i in range(per)))
        self.check_ends(fe, source)

    def test_restart(self):
        """The guest reboots amid postcopy: QEMU confirms a memory that has not changed."""
        fe = self.frontend()
        source = self.arrive(fe)
        for _ in range(3):
            self.check_io(fe)
            base = fe.get_vring_base(0)
            P.acknowledge(fe, 0)
            fe.set_vring_base(0, base)
            fe.set_vring_fd(F.SET_VRING_KICK, 0, fe.q[0].kick_fd)
        P.send_memory(fe, source, table=True)
        self.check_io(fe, sector=8)
        self.check_ends(fe, source)

    def left_in_flight(self, hold):
        """A killed target had four writes in flight, the pages of which are missing now."""
        self.t.rpc('vhost_create_blk_controller', ctrlr='slow', packed_ring=True,
                   dev_name=self.delay(self.t, self.malloc(self.t, 'm2'), 60000000))
        fe = self.frontend(indirect=True)
        fe.open(self.t.path('slow'))
        fe.start()
        jobs = []
        for i in range(4):
            data, table = (fe.alloc(self.page, self.page) for _ in range(2))
            hdr, status = fe.alloc(16), fe.alloc(1)
            fe.mem_write(hdr, struct.pack('<IIQ', F.T_OUT, 0, 8 * i))
            fe.mem_write(data, pattern(PAGE, i))
            fe.q[0].submit_chain([(hdr, 16), (data, PAGE, False), (status, 1, True)],
                                 table_gpa=table, status_gpa=status, how=F.HOW_INDIRECT)
            jobs += [data, table]
        spindle.wait_until(lambda: self.t.rpc('vhost_get_controllers', name='slow')[0]
                           ['sessions'][0]['inflight_task_cnt'] == 4, WAIT, 'in flight')
        self.t.kill()
        self.t.start()
        self.path = self.ctrlr(self.t, 'c0', self.bdev(self.t), packed_ring=True)
        fe.close()
        source = self.arrive(fe, take=lambda s: [s.take(gpa, PAGE, hold) for gpa in jobs])
        spindle.wait_until(lambda: source.asked, WAIT, 'asked for')
        return fe, source

    def test_in_flight(self):
        """They are done again, when their pages have come; a stop waits for that."""
        for stop in (False, True):
            fe, source = self.left_in_flight(hold=stop)
            if stop:
                fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
                self.assertTrue(fe.quiet(0.1))
                source.release()
                self.assertEqual(fe.recv(WAIT).request, F.GET_VRING_BASE)
            fe.q[0].wait_all(4, WAIT)
            self.assertGreaterEqual(len(source.asked), 4 if self.page == PAGE else 1)
            if not stop:
                for i in range(4):
                    self.assertEqual(fe.read(8 * i, PAGE), pattern(PAGE, i))
                self.check_ends(fe, source)
            fe.close()
            self.wait_sessions(self.t, 0)
            self.t.stop()
            self.t.start()

    def test_in_flight_lost(self):
        """The front end is gone before, and gone while it waits for the stop."""
        for stop in (False, True):
            fe, source = self.left_in_flight(hold=True)
            if stop:
                fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
                self.assertTrue(fe.quiet(0.1))
            fe.close()
            self.wait_sessions(self.t, 0)
            self.t.stop()
            self.t.start()

    def test_withheld(self):
        """A page that does not come for a while: others are served meanwhile."""
        other = self.connect(self.disk(self.t, 'c1', 'm1'))
        fe = self.frontend(queues=2)
        source = self.arrive(fe)
        data = fe.alloc(self.page, self.page)
        fe.mem_write(data, pattern(PAGE, 7))
        source.take(data, PAGE, hold=True)
        fe.q[0].submit(F.T_OUT, 0, [(data, PAGE)])
        spindle.wait_until(lambda: source.is_asked(data, PAGE), WAIT, 'asked for')
        end, n = time.monotonic() + self.withheld, 0
        while time.monotonic() < end:
            self.check_io(other, sector=8 * (n % 64), seed=n)
            n += 1
        self.check_io(fe, q=1, sector=32)
        self.assertEqual(fe.q[0].poll(), [])
        source.release()
        self.assertEqual(fe.q[0].wait(WAIT)[0].status, F.S_OK)
        self.assertEqual(fe.read(0, PAGE), pattern(PAGE, 7))
        self.check_ends(fe, source)

    def stuck(self, fe):
        """A request that waits for a page which never comes."""
        source = self.arrive(fe)
        data = fe.alloc(self.page, self.page)
        source.take(data, PAGE, hold=True)
        for q in fe.q:
            q.submit(F.T_OUT, 0, [(data, PAGE)])
        spindle.wait_until(lambda: source.is_asked(data, PAGE), WAIT, 'asked for')
        source.had = source.blocks()
        return source, data

    def check_not_made_up(self, source):
        """The page is still missing: a guest would have found zeroes in it."""
        self.assertEqual(source.blocks(), source.had)

    def test_front_end_lost(self):
        other = self.connect(self.disk(self.t, 'c1', 'm1'))
        fe = self.frontend(queues=2)
        source, _ = self.stuck(fe)
        fe.close()
        self.wait_sessions(self.t, 0)
        self.check_io(other)
        spindle.wait_until(lambda: not pagers(self.t), 5, 'the pager is gone')
        self.check_not_made_up(source)
        # The socket is free for the next one.
        self.check_io(self.connect(self.path), sector=128)

    def test_shutdown(self):
        source, _ = self.stuck(self.frontend(queues=2))
        began = time.monotonic()
        self.t.stop()
        self.assertLess(time.monotonic() - began, 5)
        self.check_not_made_up(source)

    def test_target_killed(self):
        """The pager does not outlive it, even with all its threads waiting."""
        fe = self.frontend(queues=2)
        source, data = self.stuck(fe)
        pids = pagers(self.t)
        self.t.kill()
        spindle.wait_until(lambda: not any(os.path.exists(f'/proc/{p}') for p in pids), 5,
                           'the pager is gone')
        self.check_not_made_up(source)

    def test_pager_killed(self):
        other = self.connect(self.disk(self.t, 'c1', 'm1'))
        fe = self.frontend()
        source, _ = self.stuck(fe)
        os.kill(int(pagers(self.t)[0]), signal.SIGKILL)
        self.check_closed(fe)
        self.wait_sessions(self.t, 0)
        self.check_io(other)
        self.check_not_made_up(source)

    def test_stop_while_waiting(self):
        """GET_VRING_BASE does not wait for a page: the request stays in the ring."""
        fe = self.frontend()
        source, data = self.stuck(fe)
        base = fe.get_vring_base(0)
        self.assertEqual(base, F.PACKED_START if self.packed else 0)
        source.release()
        fe.set_vring_base(0, base)
        fe.set_vring_fd(F.SET_VRING_KICK, 0, fe.q[0].kick_fd)
        self.assertEqual(fe.q[0].wait(WAIT)[0].status, F.S_OK)
        self.check_ends(fe, source)

    def test_end_while_waiting(self):
        """END says that all is there; who still waits goes on."""
        fe = self.frontend()
        source, data = self.stuck(fe)
        fe.mem_write(data, pattern(PAGE, 3))
        P.end(fe)
        self.assertEqual(fe.q[0].wait(WAIT)[0].status, F.S_OK)
        self.assertEqual(fe.read(0, PAGE), pattern(PAGE, 3))

    def test_page_taken_away(self):
        """A hostile front end takes a page away that was there: nobody waits for it."""
        other = self.connect(self.disk(self.t, 'c1', 'm1'))
        fe = self.frontend()
        source = self.arrive(fe)
        data = fe.alloc(self.page, self.page)
        fe.q[0].submit(F.T_OUT, 0, [(data, PAGE)])
        fe.q[0].wait(WAIT)
        source.take(data, PAGE, hold=True)
        source.had = source.blocks()
        fe.q[0].submit(F.T_OUT, 0, [(data, PAGE)])
        if self.copies:
            self.check_closed(fe)
        else:
            self.assertEqual(fe.q[0].wait(WAIT)[0].status, F.S_IOERR)
        self.check_io(other)
        self.check_not_made_up(source)

    def test_no_power_over_the_target(self):
        """The userfaultfd that a front end gets is good for the pager's memory only."""
        fe = self.frontend()
        source = self.arrive(fe)
        with open(f'/proc/{self.t.pid}/maps') as f:
            heap = next(line for line in f if '[heap]' in line or '[stack]' in line).split('-')[0]
        with open(f'/proc/{pagers(self.t)[0]}/status') as f:
            uids = next(line for line in f if line.startswith('Uid:')).split()[1:]
        self.assertEqual(set(uids), {'65534'} if os.geteuid() == 0 else {str(os.geteuid())})
        register = bytearray(struct.pack('<QQQQ', int(heap, 16), PAGE, 1, 0))
        with self.assertRaises(OSError):
            fcntl.ioctl(source.uffd, P.UFFDIO_REGISTER, register)
        self.check_ends(fe, source)


def Source_take_all(source):
    source.take_all()


class Packed(Split):
    packed = True
    withheld = 0.5


class Huge(Split):
    page = P.HUGE
    copies = True
    withheld = 0.5

    def bdev(self, t):
        return self.malloc(t, 'm0')

    opts = {'backing': 'huge', 'mem_size': 80 * MIB}
    count = 2


class Enormous(Case):
    """Gigabytes that are not there, named by one request: only its own guest waits."""
    opts = {'mem_size': 2048 * MIB, 'indirect': True}

    def test_neighbour(self):
        other = self.connect(self.disk(self.t, 'c1', 'm1'))
        for pieces in (3, 256):
            with self.subTest(pieces=pieces):
                fe = self.frontend()
                self.arrive(fe)
                table, header, status = fe.alloc(16 * (pieces + 2)), fe.alloc(16), fe.alloc(1)
                fe.mem_write(header, struct.pack('<IIQ', F.T_IN, 0, 0))
                data = (fe.c.regions[0].gpa, 1024 * MIB, True)
                fe.q[0].submit_chain([(header, 16)] + [data] * pieces + [(status, 1, True)],
                                     table_gpa=table, status_gpa=status, how=F.HOW_INDIRECT)
                for _ in range(20):
                    began = time.monotonic()
                    other.read(0, 512, timeout=WAIT)
                    # Those 256 took 13 s, and as many as a chain may have several minutes.
                    self.assertLess(time.monotonic() - began, 3 * SLOW)
                # More than 2^32 bytes are no request at all.
                if pieces > 4:
                    self.t.wait_log('has a loop or is too long')
                fe.close()


class EnormousPacked(Enormous):
    packed = True


class Takeover(TakeoverCase, Case):
    def test_waits(self):
        """A guest in postcopy cannot be handed over: the predecessor goes on."""
        fe = self.frontend()
        source = self.arrive(fe)
        self.check_io(fe)
        successor = self.successor(self.t)
        self.wait_kept(self.t, timeout=10 * SLOW)
        self.assertEqual(successor.wait(), 1)
        self.check_io(fe)
        self.check_ends(fe, source)
        self.take_over(self.t)
        self.check_io(fe)


class Messages(Case):
    """What a front end may say when."""

    def negotiated(self):
        fe = self.frontend()
        fe.open(self.path)
        P.negotiate(fe)
        return fe

    def test_not_announced(self):
        fe = self.negotiated()
        fe.send_raw(P.LISTEN, flags=F.VERSION | F.NEED_REPLY)
        self.check_closed_after_answers(fe)
        self.wait_sessions(self.t, 0)

    def test_with_memory(self):
        fe = self.negotiated()
        fe.start_rings()
        os.close(P.advise(fe))
        fe.send_raw(P.LISTEN)
        self.check_closed(fe)

    def test_no_confirmation(self):
        """Without one no ring runs, and a fault would be answered by nobody."""
        fe = self.negotiated()
        source = P.Source(fe, P.advise(fe))
        self.addCleanup(source.close)
        fe.send_raw(P.LISTEN)
        source.take_all()
        P.send_memory(fe, source, ack=False)
        fe.start_rings()
        source.thread.start()
        self.assertFalse(self.sessions(self.t)[0]['started'])
        self.assertEqual(source.asked, [])
        P.acknowledge(fe, 0)
        self.check_io(fe)
        self.check_ends(fe, source)

    def test_wrong_order(self):
        for words in ((P.ADVISE, P.LISTEN, P.ADVISE), (P.ADVISE, P.LISTEN, P.LISTEN, P.END, 0)):
            fe = self.negotiated()
            for request in words:
                fe.send_raw(request, bytes(8) if request == 0 else b'')
            self.check_closed_after_answers(fe)

    def check_closed_after_answers(self, fe):
        with self.assertRaises(OSError) as caught:
            while True:
                for fd in fe.recv(WAIT).fds:
                    os.close(fd)
        self.assertEqual(caught.exception.errno, errno.EPIPE)

    def test_precopy_after_all(self):
        """Announced, and then not needed: memory comes without LISTEN."""
        fe = self.negotiated()
        os.close(P.advise(fe))
        fe.start_rings()
        self.check_io(fe)
        spindle.wait_until(lambda: not pagers(self.t), 5, 'the pager is gone')
        P.end(fe)
        self.check_io(fe)

    def test_vanishes_early(self):
        """While its pager is being started."""
        for _ in range(5):
            fe = self.negotiated()
            fe.send_raw(P.ADVISE)
            fe.close()
        self.wait_sessions(self.t, 0)
        spindle.wait_until(lambda: not pagers(self.t), 5, 'the pagers are gone')

    def test_not_negotiated(self):
        for request in (0, P.ADVISE, P.LISTEN, P.END):
            fe = self.connect(self.path)
            fe.send_raw(request, bytes(8) if request == 0 else b'')
            self.check_closed(fe)
            fe.destroy()

if __name__ == '__main__':
    spindle.run_tests()
