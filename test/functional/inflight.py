# SPDX-License-Identifier: BSD-3-Clause
"""The in-flight region of a front end: its fields, and a device that dies between any two of them.

    r = inflight.region(fe, q=0)            # SplitRegion or PackedRegion, as the rings are
    r.used_idx, r.desc(5).inflight          # what the target wrote
    r.set(used_idx=7); r.set_desc(5, inflight=1)

SplitDevice and PackedDevice do by hand what a target does with one ring, in the specification's
order and one store at a time. Each store is a step; a device made with `steps=n` raises Dead
instead of doing step n, and leaves ring and region as a process killed there would.
"""
import collections
import mmap
import struct

SPLIT_HEADER = {'features': ('<Q', 0), 'version': ('<H', 8), 'desc_num': ('<H', 10),
                'last_batch_head': ('<H', 12), 'used_idx': ('<H', 14)}
SPLIT_DESC = {'inflight': ('<B', 0), 'next': ('<H', 6), 'counter': ('<Q', 8)}
PACKED_HEADER = {'features': ('<Q', 0), 'version': ('<H', 8), 'desc_num': ('<H', 10),
                 'free_head': ('<H', 12), 'old_free_head': ('<H', 14), 'used_idx': ('<H', 16),
                 'old_used_idx': ('<H', 18), 'used_wrap': ('<B', 20), 'old_used_wrap': ('<B', 21)}
PACKED_DESC = {'inflight': ('<B', 0), 'next': ('<H', 2), 'last': ('<H', 4), 'num': ('<H', 6),
               'counter': ('<Q', 8), 'id': ('<H', 16), 'flags': ('<H', 18), 'len': ('<I', 20),
               'addr': ('<Q', 24)}


class Dead(Exception):
    """The device was killed here."""


class _Region:
    header = desc_fields = None
    entries_at = entry_size = 16

    def __init__(self, buf, at, size):
        self.buf, self.at, self.size = buf, at, size
        self.Desc = collections.namedtuple('Desc', list(self.desc_fields))

    def __getattr__(self, name):
        if name == 'header' or name not in self.header:
            raise AttributeError(name)
        fmt, at = self.header[name]
        return struct.unpack_from(fmt, self.buf, self.at + at)[0]

    def set(self, **fields):
        for name, value in fields.items():
            fmt, at = self.header[name]
            struct.pack_into(fmt, self.buf, self.at + at, value)

    def _entry(self, i):
        return self.at + self.entries_at + i * self.entry_size

    def desc(self, i):
        return self.Desc(*(struct.unpack_from(fmt, self.buf, self._entry(i) + at)[0]
                           for fmt, at in self.desc_fields.values()))

    def set_desc(self, i, **fields):
        for name, value in fields.items():
            fmt, at = self.desc_fields[name]
            struct.pack_into(fmt, self.buf, self._entry(i) + at, value)

    def in_flight(self):
        """The entries marked, in the order of their counters."""
        marked = [(self.desc(i).counter, i) for i in range(self.desc_num) if self.desc(i).inflight]
        return [i for _, i in sorted(marked)]

    def raw(self):
        return bytes(self.buf[self.at:self.at + self.size])

    def write(self, data, at=0):
        self.buf[self.at + at:self.at + at + len(data)] = data


class SplitRegion(_Region):
    header, desc_fields = SPLIT_HEADER, SPLIT_DESC


class PackedRegion(_Region):
    header, desc_fields = PACKED_HEADER, PACKED_DESC
    entries_at = entry_size = 32


def get(fe, queues=None, size=None):
    """GET_INFLIGHT_FD: what start_rings() would do, ahead of it, to write into the region."""
    c = fe.c
    c.inflight_size, c.inflight_offset, c.inflight_fd = fe.get_inflight_fd(
        queues or c.num_vqs, size or c.opts.queue_size)


def region(fe, q=0, packed=None):
    """Queue q's part of the region; it stays mapped as long as it is referred to."""
    c = fe.c
    if packed is None:
        packed = fe.has_feature(34)
    whole = mmap.mmap(c.inflight_fd, c.inflight_offset + c.inflight_size)
    each = c.inflight_size // c.num_vqs
    return (PackedRegion if packed else SplitRegion)(whole, c.inflight_offset + q * each, each)


class _Device:
    def __init__(self, fe, region, steps=None, q=0):
        self.fe, self.q, self.r = fe, fe.q[q], region
        self.steps, self.done, self.counter = steps, 0, 0

    def step(self, store, *args, **kw):
        if self.done == self.steps:
            raise Dead()
        store(*args, **kw)
        self.done += 1

    def fresh(self):
        self.r.set(features=0, version=1, desc_num=self.q.size)


class SplitDevice(_Device):
    """`taken` and `told` say what a successor has to find: heads marked in flight, and heads whose
    used entry the driver can see."""

    def __init__(self, fe, region, steps=None, q=0, start=0):
        super().__init__(fe, region, steps, q)
        self.last_avail = self.used = start
        self.taken, self.told = [], []

    def fresh(self):
        super().fresh()
        self.r.set(last_batch_head=0, used_idx=self.used)

    def _word(self, gpa, fmt, value):
        self.fe.mem_write(gpa, struct.pack(fmt, value))

    def fetch(self, count):
        q = self.q
        for _ in range(count):
            head, = struct.unpack('<H', self.fe.mem_read(
                q.avail_gpa + 4 + 2 * (self.last_avail % q.size), 2))
            self.step(self.r.set_desc, head, counter=self.counter)
            self.step(self.r.set_desc, head, inflight=1)
            self.taken.append(head)
            self.counter += 1
            self.last_avail += 1

    def use(self, heads, finish):
        """Complete these heads as one batch. finish(head): write the status byte."""
        q, batch = self.q, self.r.last_batch_head
        for i, head in enumerate(heads):
            finish(head)
            self.step(self.r.set_desc, head, next=batch)
            self.step(self.r.set, last_batch_head=head)
            batch = head
            at = q.used_gpa + 4 + 8 * ((self.used + i) % q.size)
            self.step(self.fe.mem_write, at, struct.pack('<II', head, 1))
        self.used = (self.used + len(heads)) & 0xffff
        self.step(self._word, q.used_gpa + 2, '<H', self.used)
        for head in heads:
            self.taken.remove(head)
            self.told.append(head)
        for head in heads:
            self.step(self.r.set_desc, head, inflight=0)
        self.step(self.r.set, used_idx=self.used)


class PackedDevice(_Device):
    """As SplitDevice; heads are buffer ids, and a request's entries are found by id. How the list
    of free entries ends is nowhere said: some end it with the number of entries, some nowhere."""
    circular = True

    def __init__(self, fe, region, steps=None, q=0):
        super().__init__(fe, region, steps, q)
        self.at, self.wrap = 0, 1               # next descriptor to take
        self.used, self.used_wrap = 0, 1
        self.taken, self.told, self.entry = [], [], {}

    def fresh(self):
        super().fresh()
        self.r.set(free_head=0, old_free_head=0, used_idx=0, old_used_idx=0, used_wrap=1,
                   old_used_wrap=1)
        for i in range(self.q.size):
            self.r.set_desc(i, next=(i + 1) % self.q.size if self.circular else i + 1)

    def _desc(self, i):
        return struct.unpack('<QIHH', self.fe.mem_read(self.q.desc_gpa + 16 * i, 16))

    def _advance(self, at, wrap, count):
        at += count
        return (at - self.q.size, wrap ^ 1) if at >= self.q.size else (at, wrap)

    def fetch(self, count):
        for _ in range(count):
            r, head = self.r, self.r.old_free_head
            free, num = r.free_head, 0
            self.step(r.set_desc, head, num=0)
            self.step(r.set_desc, head, counter=self.counter)
            self.step(r.set_desc, head, inflight=1)
            self.counter += 1
            at, wrap = self.at, self.wrap
            while True:
                addr, length, ident, flags = self._desc(at)
                at, wrap = self._advance(at, wrap, 1)
                last = not flags & 1
                if last:
                    self.step(r.set_desc, head, last=free)
                num += 1
                self.step(r.set_desc, head, num=num)
                self.step(r.set_desc, free, addr=addr, len=length, flags=flags, id=ident)
                free = r.desc(free).next
                self.step(r.set, free_head=free)
                if last:
                    break
            self.step(r.set, old_free_head=free)
            self.at, self.wrap = at, wrap
            self.taken.append(ident)
            self.entry[ident] = head

    def use(self, idents, finish):
        """Complete these buffers as one batch: all used descriptors but the first are written
        before it, as the driver looks at that one."""
        r, places = self.r, []
        old, old_wrap, free = self.used, self.used_wrap, r.free_head
        for ident in idents:
            finish(ident)
            e = self.entry[ident]
            d = r.desc(e)
            self.step(r.set_desc, d.last, next=free)
            self.step(r.set, free_head=e)
            free = e
            places.append((ident, self.used, self.used_wrap))
            self.used, self.used_wrap = self._advance(self.used, self.used_wrap, d.num)
        # One store, as a target has to do it that does not want to be told apart in between.
        self.step(r.set, used_idx=self.used, used_wrap=self.used_wrap)
        for ident, place, wrap in reversed(places):
            gpa = self.q.desc_gpa + 16 * place
            self.step(self.fe.mem_write, gpa + 8, struct.pack('<IH', 1, ident))
            self.step(self.fe.mem_write, gpa + 14, struct.pack('<H', 0x8080 if wrap else 0))
        for ident in idents:
            self.taken.remove(ident)
            self.told.append(ident)
        for ident in idents:
            self.step(r.set_desc, self.entry.pop(ident), inflight=0)
        self.step(r.set, old_free_head=free, old_used_idx=self.used,
                  old_used_wrap=self.used_wrap)
