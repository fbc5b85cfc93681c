#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Messages that break the protocol: the session is closed, no fd stays behind, nobody else
notices; and those of which only the wish is refused."""
import os
import random
import struct

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, fd_count, spindle

PLAIN = (F.GET_FEATURES, F.SET_OWNER, F.GET_PROTOCOL_FEATURES, F.GET_QUEUE_NUM,
         F.GET_MAX_MEM_SLOTS, F.RESET_DEVICE, F.RESET_OWNER)
U64 = (F.SET_FEATURES, F.SET_PROTOCOL_FEATURES, F.SET_VRING_KICK, F.SET_VRING_CALL,
       F.SET_VRING_ERR, F.SET_STATUS)
STATE = (F.SET_VRING_NUM, F.SET_VRING_BASE, F.GET_VRING_BASE, F.SET_VRING_ENABLE)
FD_MESSAGES = (F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR)


def state(index, num):
    return struct.pack('<II', index, num)


def region(gpa, size, uva=None, offset=0):
    return struct.pack('<QQQQ', gpa, size, gpa if uva is None else uva, offset)


def table(*regions, count=None):
    return struct.pack('<II', len(regions) if count is None else count, 0) + b''.join(regions)


class Messages(VhostCase):
    def setUp(self):
        self.t = self.target()
        self.path = self.disk(self.t)
        self.other = self.connect(self.path)
        self.check_io(self.other)
        self.before = fd_count(self.t)
        self.null = os.open('/dev/null', os.O_RDWR)
        self.addCleanup(os.close, self.null)
        self.memfd = os.memfd_create('mem')
        os.ftruncate(self.memfd, 16 * MIB)
        self.addCleanup(os.close, self.memfd)

    def closes(self, request, payload=b'', start=False, **kw):
        """This message ends its session and leaves nothing behind. start: rings run already."""
        fe = self.connect(self.path, status=True, no_start=not start, queues=2)
        if start:
            self.check_io(fe)
        else:
            fe.negotiate()
        fe.send_raw(request, payload, **kw)
        self.check_closed(fe)
        fe.destroy()

    def tearDown(self):
        self.check_io(self.other, seed=77)
        self.wait_sessions(self.t, 1)
        self.check_fds(self.t, self.before)
        super().tearDown()

    def test_too_long(self):
        for request in PLAIN:
            self.closes(request, bytes(8))
        for request in U64 + STATE:
            self.closes(request, bytes(16))
        self.closes(F.SET_VRING_ADDR, bytes(48))
        self.closes(F.GET_CONFIG, bytes(12 + 257))
        self.closes(F.SET_CONFIG, bytes(12 + 257))
        self.closes(F.ADD_MEM_REG, bytes(48), fds=[self.memfd])
        self.closes(F.SET_MEM_TABLE, bytes(8 + 9 * 32), fds=[self.memfd])

    def test_too_short(self):
        for request in U64 + STATE:
            for size in (0, 1, 7):
                self.closes(request, bytes(size))
        self.closes(F.SET_VRING_ADDR, bytes(39))
        self.closes(F.GET_CONFIG, bytes(11))
        self.closes(F.SET_CONFIG, b'')
        self.closes(F.ADD_MEM_REG, bytes(39), fds=[self.memfd])
        self.closes(F.REM_MEM_REG, bytes(8))
        self.closes(F.SET_MEM_TABLE, bytes(7))

    def test_absurd_sizes(self):
        for size in (4097, 0x7fffffff, 0x80000000, 0xffffffff):
            for request in (F.GET_FEATURES, F.SET_FEATURES, F.SET_MEM_TABLE, F.GET_CONFIG):
                self.closes(request, bytes(64), size=size)

    def test_unknown_requests(self):
        for request in (0, 41, 42, 255, 0x7fffffff, 0xffffffff):
            self.closes(request)
        # Known to the protocol, offered by nobody here.
        for request, size in ((19, 8), (20, 8), (22, 40), (23, 8), (26, 8), (27, 8), (28, 0),
                              (29, 0), (30, 0), (33, 0), (35, 8)):
            self.closes(request, bytes(size))
        self.closes(F.SET_LOG_FD, bytes(8), fds=[self.null])

    def test_versions_and_flags(self):
        for flags in (0, 2, 3, F.REPLY, F.VERSION | F.REPLY, 0xfffffffe):
            self.closes(F.GET_FEATURES, flags=flags)

    def test_feature_not_negotiated(self):
        for request, payload in ((F.GET_CONFIG, struct.pack('<III', 0, 8, 0) + bytes(8)),
                                 (F.GET_QUEUE_NUM, b''), (F.GET_MAX_MEM_SLOTS, b''),
                                 (F.GET_STATUS, b''), (F.RESET_DEVICE, b'')):
            fe = self.connect(self.path, no_start=True)
            fe.send_raw(request, payload)
            self.check_closed(fe)
            fe.destroy()

    def test_missing_fds(self):
        for request in FD_MESSAGES:
            self.closes(request, struct.pack('<Q', 0))
        self.closes(F.ADD_MEM_REG, bytes(8) + region(0, MIB))
        self.closes(F.SET_BACKEND_REQ_FD)
        self.closes(F.SET_MEM_TABLE, table(region(0, MIB)))
        self.closes(F.SET_MEM_TABLE, table(region(0, MIB), region(MIB, MIB)), fds=[self.memfd])

    def test_surplus_fds(self):
        for count in (1, 2, 8, 9, 32, 33, 253):
            self.closes(F.GET_FEATURES, fds=[self.null] * count)
            self.closes(F.SET_VRING_NUM, state(0, 128), fds=[self.null] * count)
        for request in FD_MESSAGES:
            self.closes(request, struct.pack('<Q', 0), fds=[self.null] * 2)
            self.closes(request, struct.pack('<Q', 0x100), fds=[self.null])
        self.closes(F.ADD_MEM_REG, bytes(8) + region(0, MIB), fds=[self.memfd] * 2)
        self.closes(F.SET_MEM_TABLE, table(region(0, MIB)), fds=[self.memfd] * 2)
        self.closes(F.SET_MEM_TABLE, table(region(0, MIB)), fds=[self.memfd] * 9)
        self.closes(F.SET_BACKEND_REQ_FD, fds=[self.null] * 2)
        # In-flight regions with many fds, as CVE-2022-0669 has it.
        self.closes(F.SET_INFLIGHT_FD, bytes(24), fds=[self.null] * 8)
        self.closes(F.GET_INFLIGHT_FD, bytes(24), fds=[self.null] * 8)

    def test_fds_with_every_piece(self):
        # Each byte of a message brings another fd.
        message = struct.pack('<III', F.SET_VRING_KICK, F.VERSION, 8) + struct.pack('<Q', 0)
        fe = self.connect(self.path, no_start=True)
        fe.negotiate()
        try:
            for byte in message:
                fe.send_bytes(bytes([byte]), fds=[self.null] * 4)
        except OSError:
            pass    # closed before the end: as good
        self.check_closed(fe)
        fe.destroy()

    def test_memory_tables(self):
        fd = [self.memfd]
        for payload, fds in (
                (table(), []), (table(), fd), (table(region(0, MIB), count=0), fd),
                (table(region(0, MIB), count=2), fd), (table(region(0, MIB), count=2), fd * 2),
                (table(region(0, MIB), count=1000), fd),
                (table(region(0, MIB), count=1000), fd * 8),
                (table(region(0, MIB), count=0xffffffff), fd),
                (table(region(0, MIB), region(MIB - 1, MIB)), fd * 2),      # overlaps
                (table(region(0, MIB), region(0, MIB)), fd * 2),
                (table(region(0, MIB), region(4 * MIB, MIB, uva=MIB - 1)), fd * 2),
                (table(region(0, 0)), fd),
                (table(region(0, 16 * MIB + 1)), fd),                       # beyond the file
                (table(region(0, MIB, offset=16 * MIB)), fd),
                (table(region(0, 2 * MIB, offset=15 * MIB)), fd),
                (table(region(0, 1 << 63)), fd),
                (table(region(0, MIB, offset=1 << 63)), fd),
                (table(region(0, MIB, offset=(1 << 64) - MIB)), fd),
                (table(region((1 << 64) - 4096, MIB)), fd),                 # wraps
                (table(region(0, MIB, uva=(1 << 64) - 4096)), fd),
                (table(region(0, (1 << 64) - 1)), fd),
                (table(region(0, 4096)), [self.null])):
            with self.subTest(payload=payload[:80], fds=len(fds)):
                self.closes(F.SET_MEM_TABLE, payload, fds=fds)
                if len(payload) == 40 and len(fds) == 1 and payload[0] == 1:
                    self.closes(F.ADD_MEM_REG, bytes(8) + payload[8:], fds=fds)

    def test_memory_of_other_kinds(self):
        # Pipes, sockets, directories, a file opened read-only: refused, not died of.
        a, b = os.pipe()
        directory = os.open('/tmp', os.O_RDONLY)
        with open(self.t.path('ro'), 'wb') as f:
            f.truncate(MIB)
        readonly = os.open(self.t.path('ro'), os.O_RDONLY)
        try:
            for fd in (a, b, directory, readonly, self.other.c.sock):
                self.closes(F.ADD_MEM_REG, bytes(8) + region(0, 65536), fds=[fd])
        finally:
            for fd in (a, b, directory, readonly):
                os.close(fd)

    def test_a_thousand_regions(self):
        fe = self.connect(self.path, no_start=True)
        fe.negotiate()
        slots = fe.c.max_mem_slots
        with self.assertRaises(OSError) as caught:
            for i in range(1000):
                fe.send_raw(F.ADD_MEM_REG, bytes(8) + region(i * 8192, 4096), fds=[self.memfd],
                            flags=F.VERSION | F.NEED_REPLY)
                answer = fe.recv()
                if answer.payload != bytes(8):
                    raise OSError(i, 'refused')
        self.assertEqual(caught.exception.errno, slots)
        fe.destroy()

    def test_vring_num(self):
        for num in (0, 3, 129, 1000, 2048, 65536, 0x80000000, 0xffffffff):
            self.closes(F.SET_VRING_NUM, state(0, num))
        # Another size while it runs.
        self.closes(F.SET_VRING_NUM, state(0, 256), start=True)

    def test_vring_num_after_the_addresses(self):
        # Grown between ADDR and KICK, beyond its memory: that ring only.
        fe = self.connect(self.path, style='qemu11', queues=2, mem_size=MIB)
        q = fe.q[0]
        q.stop()
        end = fe.uva(0) + MIB
        fe.set_vring_addr(0, fe.uva(q.desc_gpa), end - 1030, fe.uva(q.avail_gpa))
        fe.set_vring_num(0, 1024)
        fe.set_vring_fd(F.SET_VRING_KICK, 0, q.kick_fd)
        self.assertEqual(q.error(WAIT), 1)
        self.check_io(fe, q=1)
        fe.destroy()

    def test_vring_base(self):
        self.closes(F.SET_VRING_BASE, state(0, 0x10000))
        self.closes(F.SET_VRING_BASE, state(0, 0xffffffff))
        self.closes(F.SET_VRING_BASE, state(0, 5), start=True)

    def test_queue_numbers(self):
        for index in (256, 257, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff):
            for request in STATE:
                self.closes(request, state(index, 128))
            self.closes(F.SET_VRING_ADDR, struct.pack('<IIQQQQ', index, 0, 0, 0, 0, 0))

    def test_hangup_at_any_time(self):
        # After each message of a whole start, with and without requests in flight.
        for queues in (1, 2):
            for flags in ({}, {'mem_table': True}):
                for step in range(40):
                    fe = F.Frontend(queues=queues, timeout=WAIT, mem_size=2 * MIB, **flags)
                    fe.open(self.path)
                    done = self.cut_off(fe, step)
                    fe.destroy()
                    if done:
                        break

    @staticmethod
    def cut_off(fe, step):
        """True when the whole start and a request fitted into that many messages."""
        gen = Messages.whole_start(fe)
        for _ in range(step):
            if next(gen, None) is None:
                return True
        return False

    @staticmethod
    def whole_start(fe):
        fe.get_features()
        yield 1
        fe.negotiate()
        yield 1
        if fe.has_protocol(F.PF_CONFIGURE_MEM_SLOTS):
            fe.add_mem_reg(0)
        else:
            fe.set_mem_table()
        yield 1
        for q in fe.q:
            fe.set_vring_num(q.index, q.size)
            yield 1
            fe.set_vring_base(q.index, 0)
            yield 1
            fe.set_vring_addr(q.index, fe.uva(q.desc_gpa), fe.uva(q.used_gpa), fe.uva(q.avail_gpa))
            yield 1
            fe.set_vring_fd(F.SET_VRING_KICK, q.index, q.kick_fd)
            yield 1
            fe.set_vring_enable(q.index, 1)
            yield 1
        for q in fe.q:
            for _ in range(8):
                q.submit(F.T_FLUSH, 0)
            yield 1
        for q in fe.q:
            fe.set_vring_enable(q.index, 0)
            yield 1
            fe.send_raw(F.GET_VRING_BASE, state(q.index, 0))
            yield 1

    def test_two_hundred_bad_sessions(self):
        # The count of fds, and of sessions, is what it was.
        rng = random.Random(7)
        for i in range(200):
            fe = self.connect(self.path, no_start=i % 3 == 0, queues=1 + i % 4, mem_size=MIB,
                              queue_size=16, timeout=WAIT)
            for _ in range(rng.randrange(4)):
                try:
                    fe.send_raw(rng.choice(FD_MESSAGES), struct.pack('<Q', rng.randrange(4)),
                                fds=[self.null])
                except OSError:
                    break
            try:
                fe.send_raw(rng.choice((0, 99, F.SET_VRING_NUM, F.SET_MEM_TABLE)),
                            rng.randbytes(rng.randrange(64)), fds=[self.null] * rng.randrange(10))
            except OSError:
                pass                    # closed already, for the fds of before
            self.check_closed(fe)
            fe.destroy()
        self.wait_sessions(self.t, 1)
        self.check_fds(self.t, self.before)
        self.assertLess(len(self.t.log().splitlines()), 150)

    def test_random_messages(self):
        seed = int(os.environ.get('SEED', '11'))
        rng = random.Random(seed)
        for _ in range(150 // SLOW):
            fe = self.connect(self.path, no_start=rng.random() < 0.5, mem_size=MIB, queue_size=16)
            try:
                for _ in range(rng.randrange(1, 30)):
                    request = rng.randrange(43)
                    size = rng.choice((0, 8, 8, 8, 40, 12 + 8, rng.randrange(300)))
                    payload = b''.join(rng.choice((bytes(4), b'\1\0\0\0', b'\x80\0\0\0',
                                                   rng.randbytes(4)))
                                       for _ in range(75))[:size]
                    fe.send_raw(request, payload,
                                flags=F.VERSION | rng.choice((0, 0, F.NEED_REPLY)),
                                fds=[rng.choice((self.null, self.memfd))]
                                * rng.choice((0, 0, 1, 1, 2)))
            except OSError:
                pass
            fe.destroy()
        self.wait_sessions(self.t, 1)

    def test_answers_never_read(self):
        # A front end that asks and does not listen loses its connection, not our time.
        fe = self.connect(self.path, no_start=True)
        ask = struct.pack('<III', F.GET_FEATURES, F.VERSION, 0)
        sent = 0
        os.set_blocking(fe.c.sock, False)
        try:
            while sent < 100 * MIB:
                sent += os.write(fe.c.sock, ask * 500)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        for i in range(20):
            self.check_io(self.other, seed=i)
            self.t.rpc('spdk_get_version')
        fe.destroy()

    def test_more_connections_than_are_served(self):
        # Those beyond the limit are not turned away: they wait until another has gone.
        fes = [self.connect(self.path, no_start=True, mem_size=MIB, queue_size=16)
               for _ in range(100)]
        spindle.wait_until(lambda: len(self.sessions(self.t)) >= 60, 5, '60 sessions')
        self.check_io(self.other)
        last = fes.pop()
        last.send_raw(F.GET_FEATURES)
        self.assertTrue(last.quiet(0.1))
        self.assertLess(len(self.sessions(self.t)), 100)
        for fe in fes:
            fe.destroy()
        self.assertEqual(last.recv(WAIT).request, F.GET_FEATURES)
        last.start()
        self.check_io(last)
        last.destroy()


if __name__ == '__main__':
    spindle.run_tests()
