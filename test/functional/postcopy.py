# SPDX-License-Identifier: BSD-3-Clause
"""Both ends of a postcopy migration: a front end whose guest has its memory still at the source,
and the source, which sends pages as they are asked for, or does not.

A page is taken out of the shared file, so that it is missing for the target; the front end must
not touch it meanwhile, since for itself it would find zeroes there.
"""
import ctypes as C
import fcntl
import os
import select
import struct
import threading

from vhostcase import F, MIB, WAIT, spindle

PAGE = 4096
HUGE = 2 * MIB
PF_PAGEFAULT = 8
ADVISE, LISTEN, END = 28, 29, 30
UFFDIO_REGISTER, UFFDIO_WAKE, UFFDIO_COPY = 0xc020aa00, 0x8010aa02, 0xc028aa03
PAGEFAULT = 0x12
PUNCH_HOLE = 3      # and keep the size
_libc = C.CDLL(None, use_errno=True)


def punch(fd, offset, length):
    if _libc.fallocate(fd, PUNCH_HOLE, C.c_long(offset), C.c_long(length)) < 0:
        raise OSError(C.get_errno(), 'fallocate')


class Source:
    """Serves faults of the pages that it has taken, in a thread of its own."""

    def __init__(self, fe, uffd, page=PAGE):
        self.fe, self.uffd, self.page = fe, uffd, page
        self.bases = {}         # region: its address in the target
        self.pages = {}         # (region, offset): its content
        self.held = set()       # not sent, though asked for
        self.asked = []
        self.late = []          # asked for while held
        self.lock = threading.Lock()
        self.stop_r, self.stop_w = os.pipe()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def where(self, gpa, length):
        """The pages of it: (region, offset)."""
        for n in range(self.fe.c.num_regions):
            r = self.fe.c.regions[n]
            if not r.gone and r.gpa <= gpa < r.gpa + r.size:
                first = (gpa - r.gpa) // self.page
                last = (gpa + length - 1 - r.gpa) // self.page
                return [(n, i * self.page) for i in range(first, last + 1)]
        raise ValueError(hex(gpa))

    def take(self, gpa, length, hold=False):
        for key in self.where(gpa, length):
            r = self.fe.c.regions[key[0]]
            if key not in self.pages:
                self.pages[key] = C.string_at(r.host + key[1], self.page)
                punch(r.fd, r.mmap_offset + key[1], self.page)
            if hold:
                self.held.add(key)

    def blocks(self):
        """What all of the guest's files occupy: more, once a page has been made up."""
        return sum(os.fstat(self.fe.c.regions[n].fd).st_blocks
                   for n in range(self.fe.c.num_regions))

    def take_all(self):
        for n in range(self.fe.c.num_regions):
            r = self.fe.c.regions[n]
            if not r.gone:
                self.take(r.gpa, r.size)

    def is_asked(self, gpa, length):
        with self.lock:
            return any(key in self.asked for key in self.where(gpa, length))

    def release(self):
        with self.lock:
            self.held.clear()
            late, self.late = self.late, []
        for key in late:
            self.send(key)

    def send_all(self):
        """The background stream: what nobody asked for comes as well."""
        for key in list(self.pages):
            self.send(key)

    def send(self, key):
        with self.lock:
            if key in self.held:
                self.late.append(key)
                return
            # One that was never written to is a hole here as well.
            data = self.pages.pop(key, None) or bytes(self.page)
        buf = C.create_string_buffer(data + bytes(self.page), 2 * self.page)
        src = (C.addressof(buf) + self.page - 1) // self.page * self.page
        C.memmove(src, data, self.page)
        at = self.bases[key[0]] + key[1]
        try:
            fcntl.ioctl(self.uffd, UFFDIO_COPY,
                        bytearray(struct.pack('<QQQQq', at, src, self.page, 0, 0)))
        except FileExistsError:     # the guest has written to it first
            fcntl.ioctl(self.uffd, UFFDIO_WAKE, bytearray(struct.pack('<QQ', at, self.page)))

    def serve(self):
        poll = select.poll()
        poll.register(self.uffd, select.POLLIN)
        poll.register(self.stop_r, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.stop_r in ready or ready.get(self.uffd, 0) & ~select.POLLIN:
                return
            try:
                event = os.read(self.uffd, 32)
            except BlockingIOError:
                continue
            except OSError:
                return
            if event[0] != PAGEFAULT:
                continue
            at = struct.unpack_from('<Q', event, 16)[0] // self.page * self.page
            for n, base in self.bases.items():
                if base <= at < base + self.fe.c.regions[n].size:
                    key = (n, at - base)
                    with self.lock:
                        self.asked.append(key)
                    self.send(key)

    def close(self):
        os.write(self.stop_w, b'x')
        if self.thread.is_alive():
            self.thread.join(WAIT)
        for fd in (self.uffd, self.stop_r, self.stop_w):
            os.close(fd)


def advise(fe):
    """-> the userfaultfd"""
    reply = fe.call(ADVISE)
    assert (reply.size, len(reply.fds)) == (0, 1), reply
    return reply.fds[0]


def negotiate(fe):
    fe.negotiate()
    if not fe.c.offered_protocol >> PF_PAGEFAULT & 1:
        raise spindle.unittest.SkipTest('no userfaultfd: postcopy is not offered')
    fe.set_protocol_features(fe.c.protocol | 1 << PF_PAGEFAULT)


def wire(r):
    return struct.pack('<QQQQ', r.gpa, r.size, r.uva, r.mmap_offset)


def send_memory(fe, source, table=False, ack=True):
    """As QEMU does it; each region is answered with the target's address of it."""
    regions = [n for n in range(fe.c.num_regions) if not fe.c.regions[n].gone]
    if table:
        payload = struct.pack('<II', len(regions), 0)
        payload += b''.join(wire(fe.c.regions[n]) for n in regions)
        request = F.SET_MEM_TABLE
        fe.send_raw(request, payload, fds=[fe.c.regions[n].fd for n in regions])
        answers = [fe.recv(WAIT)]
        assert answers[0].size == len(payload), answers
        told = [answers[0].payload[8 + 32 * i:40 + 32 * i] for i in range(len(regions))]
    else:
        request, told = F.ADD_MEM_REG, []
        for n in regions:
            fe.send_raw(request, bytes(8) + wire(fe.c.regions[n]), fds=[fe.c.regions[n].fd])
            answer = fe.recv(WAIT)
            assert (answer.request, answer.size) == (request, 40), answer
            told.append(answer.payload[8:])
    for n, region in zip(regions, told):
        gpa, size, address, _ = struct.unpack('<QQQQ', region)
        assert (gpa, size) == (fe.c.regions[n].gpa, fe.c.regions[n].size)
        source.bases[n] = address
    fe.c.memory_sent = True
    if ack:
        acknowledge(fe, request)


def acknowledge(fe, request):
    fe.send_raw(request, bytes(8))


def arrive(fe, path, page=PAGE, take=None, table=False):
    """Connect as a destination does; take(source) says what is missing. -> Source"""
    fe.open(path)
    negotiate(fe)
    source = Source(fe, advise(fe), page)
    fe.send_raw(LISTEN, flags=F.VERSION | F.NEED_REPLY)
    assert fe.recv(WAIT).payload == bytes(8)
    if take:
        take(source)
    send_memory(fe, source, table)
    source.thread.start()
    fe.start_rings()
    return source


def end(fe):
    assert fe.call(END).payload == bytes(8)
