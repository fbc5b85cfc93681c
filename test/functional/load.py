# SPDX-License-Identifier: BSD-3-Clause
"""Load on a front end that finds every write lost, done twice or gone astray.

Every sector carries its number, the sequence number of its write and a checksum. A block has at
most one request at a time, so what it must hold is known: a write lost, done over a newer one or
to the wrong place shows up in a later read, at the latest in check_disk()."""
import random
import struct
import time
import zlib

from vhostcase import F, spindle

SECTOR = 512
BLOCK = 4096
SECTORS = BLOCK // SECTOR
FILL = random.Random(1).randbytes(SECTOR)
WAIT = 20.0 * spindle.SLOW


def sector_bytes(number, sequence):
    body = struct.pack('<QQ', number, sequence) + FILL[:SECTOR - 20]
    return body + struct.pack('<I', zlib.crc32(body))


def block_bytes(block, sequence):
    return b''.join(sector_bytes(block * SECTORS + i, sequence) for i in range(SECTORS))


def explain(block, data):
    """What a block holds, for a failure's message."""
    out = []
    for i in range(SECTORS):
        piece = data[i * SECTOR:(i + 1) * SECTOR]
        number, sequence = struct.unpack_from('<QQ', piece)
        good = zlib.crc32(piece[:-4]) == struct.unpack('<I', piece[-4:])[0]
        out.append(f'{number - block * SECTORS}:{sequence}' + ('' if good else ' (bad sum)'))
    return ', '.join(out)


class Load:
    """Up to `depth` requests in flight on each queue; a cookie is the number of a buffer."""

    def __init__(self, fe, mib, depth=16, rng=random):
        self.fe, self.blocks, self.rng = fe, (mib << 20) // BLOCK, rng
        self.holds = [0] * self.blocks      # sequence of the last write that has ended; 0: none
        self.sequence = 0
        self.busy = set()
        self.pending = [{} for _ in fe.q]
        self.buffers = [fe.alloc(BLOCK * depth, 4096) for _ in fe.q]
        self.free = [list(range(depth)) for _ in fe.q]
        self.done = 0
        self.forget_gap()

    def forget_gap(self):
        """The longest time without a completion counts from here."""
        self.gap, self.last = 0, time.monotonic()

    def submit(self, q):
        i = q.index
        added = False
        while self.free[i] and q.num_free >= 4:
            block = self.rng.randrange(self.blocks)
            if block in self.busy:
                continue
            slot = self.free[i].pop(0)
            gpa = self.buffers[i] + BLOCK * slot
            write = self.rng.random() < 0.7
            if write:
                self.sequence += 1
                self.fe.mem_write(gpa, block_bytes(block, self.sequence))
            else:
                self.fe.mem_write(gpa, b'\x5a' * BLOCK)
            self.busy.add(block)
            q.submit(F.T_OUT if write else F.T_IN, block * SECTORS, [(gpa, BLOCK)],
                     how=F.HOW_NO_KICK, cookie=slot)
            self.pending[i][slot] = (block, self.sequence if write else 0)
            added = True
        if added:
            q.kick(False)

    def end(self, q, c):
        i = q.index
        if c.cookie not in self.pending[i]:
            raise AssertionError(f'queue {i}: request {c.cookie} completed twice')
        block, sequence = self.pending[i].pop(c.cookie)
        # 255: completed and never executed.
        if c.status != F.S_OK:
            raise AssertionError(f'queue {i}: status {c.status} of block {block}')
        if sequence:
            self.holds[block] = sequence
        else:
            self.check(block, self.fe.mem_read(self.buffers[i] + BLOCK * c.cookie, BLOCK))
        self.busy.remove(block)
        self.free[i].append(c.cookie)
        self.done += 1

    def check(self, block, data):
        want = block_bytes(block, self.holds[block]) if self.holds[block] else bytes(BLOCK)
        if data != want:
            raise AssertionError(f'block {block}: wrote {self.holds[block]}, read '
                                 + explain(block, data))

    def reap(self):
        count = 0
        for q in self.fe.q:
            for c in q.poll():
                self.end(q, c)
                count += 1
        if count:
            now = time.monotonic()
            self.gap = max(self.gap, now - self.last)
            self.last = now
        return count

    def step(self):
        for q in self.fe.q:
            self.submit(q)
        self.reap()

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def drain(self):
        for q in self.fe.q:
            for c in q.wait_all(q.in_flight, WAIT):
                self.end(q, c)
            if q.poll():
                raise AssertionError('more completions than requests')

    def check_disk(self):
        step = 64
        for at in range(0, self.blocks, step):
            count = min(step, self.blocks - at)
            data = self.fe.read(at * SECTORS, count * BLOCK, timeout=WAIT)
            for i in range(count):
                self.check(at + i, data[i * BLOCK:(i + 1) * BLOCK])


def drive(loads, condition, timeout=20, what='condition'):
    """Runs the loads until condition() is true, and returns its value."""
    end = time.monotonic() + timeout * spindle.SLOW
    while True:
        for load in loads:
            load.step()
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f'{what}: not within {timeout * spindle.SLOW} s of load')


def drive_for(loads, seconds):
    end = time.monotonic() + seconds
    drive(loads, lambda: time.monotonic() > end, seconds + 20)
