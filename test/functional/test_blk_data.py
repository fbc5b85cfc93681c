#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Data integrity: random requests of every kind and shape, many in flight, on several queues,
compared with a model of the disk after each round."""
import os
import random
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, spindle

SECTOR = 512


class Model:
    """A disk in memory, and requests that do not overlap each other."""

    def __init__(self, sectors, seed, block=1):
        self.rng = random.Random(seed)
        self.sectors, self.block = sectors, block
        self.data = bytearray(sectors * SECTOR)
        self.taken = []

    def free_range(self, longest):
        """(sector, count) that nothing of this round touches, or None."""
        rng, b = self.rng, self.block
        for _ in range(20):
            count = rng.choice((1, 1, 2, 8, rng.randint(1, longest))) * b
            sector = rng.randrange(0, (self.sectors - count) // b + 1) * b
            if all(sector + count <= s or s + n <= sector for s, n in self.taken):
                self.taken.append((sector, count))
                return sector, count
        return None


class Mix(VhostCase):
    rounds = 60 // SLOW

    def store(self, t, mib=4):
        """A disk for several reactors. ThreadSanitizer cannot see that the guest orders their
        accesses to a sector; where the kernel copies it does not look."""
        make = self.file if spindle.SANITIZER == 'thread' else self.malloc
        return make(t, 'm0', mib)

    def shared_disk(self, t, mib=4):
        return self.ctrlr(t, 'c0', self.store(t, mib))

    def segments(self, rng, gpa, length):
        """Cut a buffer at random places; gaps between the pieces are left unused."""
        if rng.random() < 0.4 or length < 4:
            return [(gpa, length)]
        cuts = sorted(rng.sample(range(1, length), min(length - 1, rng.randint(1, 12))))
        return [(gpa + a, b - a) for a, b in zip([0] + cuts, cuts + [length])]

    def how(self, rng, rtype, num):
        how = rng.choice((0, 0, F.HOW_HDR_PIECES))
        if rtype == F.T_IN and rng.random() < 0.3:
            how |= F.HOW_STATUS_TAIL
        if rtype == F.T_OUT and rng.random() < 0.3:
            how = F.HOW_HDR_JOINED
        return how | (F.HOW_DIRECT if num < 20 and rng.random() < 0.3 else 0)

    def one(self, fe, q, model, buffers):
        """Submit one random request; -> what to check when it is done, or None."""
        rng = model.rng
        kind = rng.choice('rrrwwwwzdf')
        if kind == 'f':
            return q.submit(F.T_FLUSH, 0, how=F.HOW_NO_KICK), None
        spot = model.free_range(64)
        if not spot:
            return None
        sector, count = spot
        length = count * SECTOR
        # Room for a header before it, for a status byte after it.
        gpa = buffers.pop() + 16 + rng.randrange(64)
        if kind in 'zd':
            fe.mem_write(gpa, F.pack_range(sector, count, rng.randint(0, 1) if kind == 'z' else 0))
            segs = self.segments(rng, gpa, 16)
            rtype = F.T_WRITE_ZEROES if kind == 'z' else F.T_DISCARD
            at = slice(sector * SECTOR, sector * SECTOR + length)
            model.data[at] = bytes(length)
            how = F.HOW_NO_KICK
            return q.submit(rtype, 0, segs, how=how), None
        segs = self.segments(rng, gpa, length)
        at = slice(sector * SECTOR, sector * SECTOR + length)
        if kind == 'w':
            data = rng.randbytes(length)
            fe.mem_write(gpa, data)
            model.data[at] = data
            return q.submit(F.T_OUT, sector, segs, how=self.how(rng, F.T_OUT, len(segs))
                            | F.HOW_NO_KICK), None
        want = bytes(model.data[at])
        fe.mem_write(gpa, b'\x5a' * length)
        head = q.submit(F.T_IN, sector, segs,
                        how=self.how(rng, F.T_IN, len(segs)) | F.HOW_NO_KICK)
        return head, (gpa, want)

    def mix(self, fe, sectors, seed=1, block=1, model=None):
        model = model or Model(sectors, seed, block)
        step = 64 * block * SECTOR + 256
        area = fe.alloc(step * 48 * len(fe.q), 4096)
        for _ in range(self.rounds):
            model.taken = []
            expected = []
            for q in fe.q:
                # A queue keeps to its own buffers: only the disk is shared between reactors.
                buffers = [area + step * (48 * q.index + i) for i in range(48)]
                model.rng.shuffle(buffers)
                waiting = {}
                while len(waiting) < 24 and q.num_free >= 24 and len(buffers) > 1:
                    got = self.one(fe, q, model, buffers)
                    if not got:
                        break
                    waiting[got[0]] = got[1]
                expected.append(waiting)
            for q in fe.q:
                q.kick(False)
            for q, waiting in zip(fe.q, expected):
                for done in q.wait_all(len(waiting), WAIT):
                    self.assertEqual(done.status, F.S_OK)
                    check = waiting.pop(done.head)
                    if check:
                        gpa, want = check
                        self.assertEqual(done.len, len(want) + 1)
                        self.assertEqual(fe.mem_read(gpa, len(want)), want)
                    else:
                        self.assertEqual(done.len, 1)
        whole = b''.join(fe.read(at, min(2048, sectors - at) * SECTOR, timeout=WAIT)
                         for at in range(0, sectors, 2048))
        self.assertEqual(whole, bytes(model.data))
        return model

    def test_malloc_direct(self):
        t = self.target()
        self.mix(self.connect(self.disk(t, mib=4), queue_size=256), 4 * MIB // SECTOR)

    def test_malloc_indirect_event_idx(self):
        t = self.target()
        self.mix(self.connect(self.disk(t, mib=4), queue_size=256, indirect=True, event_idx=True),
                 4 * MIB // SECTOR, seed=2)

    def test_malloc_legacy_four_queues(self):
        t = self.target('0x3')
        self.mix(self.connect(self.shared_disk(t), queues=4, legacy=True, event_idx=True),
                 4 * MIB // SECTOR, seed=3)

    def test_malloc_4k_blocks(self):
        t = self.target()
        self.mix(self.connect(self.disk(t, mib=8, block_size=4096), indirect=True),
                 8 * MIB // SECTOR, seed=4, block=8)

    def file_mix(self, kind, seed, mask='0x3', **opts):
        t = self.target(mask)
        path = self.ctrlr(t, 'c0', self.file(t, mib=4, kind=kind))
        fe = self.connect(path, queue_size=256, **opts)
        model = self.mix(fe, 4 * MIB // SECTOR, seed=seed)
        fe.flush(timeout=WAIT)
        with open(t.path('f0.img'), 'rb') as f:
            self.assertEqual(f.read(), bytes(model.data))

    def test_uring_file(self):
        self.file_mix('uring', 5, queues=2, indirect=True, event_idx=True)

    def test_aio_file_direct(self):
        self.file_mix('aio', 6, mask='0x1')

    def test_through_delay_and_error(self):
        t = self.target('0x3')
        name = self.error(t, self.delay(t, self.store(t), 200))
        self.mix(self.connect(self.ctrlr(t, 'c0', name), queues=2, indirect=True),
                 4 * MIB // SECTOR, seed=7)

    def test_sleeping(self):
        t = self.target('0x3', '--poll-us', '20')
        self.mix(self.connect(self.shared_disk(t), queues=2, event_idx=True, indirect=True),
                 4 * MIB // SECTOR, seed=8)

    def test_memory_in_pieces(self):
        # Every buffer lies in several regions.
        t = self.target()
        self.disk(t, mib=4)
        fe = self.connect(t.path('c0'), ring_region=0, queue_size=256, indirect=True, regions=[
            F.region(0, 8 * MIB)] + [F.region((1 << 30) + i * 8192, 8192) for i in range(250)])
        fe.alloc = lambda length, align: 1 << 30
        self.rounds = min(self.rounds, 20)
        self.mix(fe, 4 * MIB // SECTOR, seed=9)

    def test_two_front_ends_of_one_disk(self):
        t = self.target('0x3')
        path = self.shared_disk(t)
        a, b = (self.connect(path, queues=2, indirect=True) for _ in range(2))
        model = self.mix(a, 4 * MIB // SECTOR, seed=10)
        self.mix(b, 4 * MIB // SECTOR, model=model)
        self.assertEqual(a.read(0, 4 * MIB), bytes(model.data))

    def unlocked(self, t):
        try:
            return self.file(t)
        except spindle.RpcError as e:
            self.assertEqual(e.code, -16, str(e))
            return None

    def test_flushed_data_outlive_a_crash(self):
        # SIGKILL after a flush; the next target finds every byte.
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.file(t)))
        data = os.urandom(MIB)
        fe.write(77, data)
        fe.flush()
        fe.close()
        t.kill()
        t.start()
        began = time.monotonic()
        # The kernel closes a killed process's io_uring, and with it the lock, a moment later.
        spindle.wait_until(lambda: self.unlocked(t), 5, 'the dead target\'s lock to go')
        if os.environ.get('VERBOSE'):
            print(f'lock outlived its process by {time.monotonic() - began:.3f} s')
        fe = self.connect(self.ctrlr(t, 'c0', 'f0'))
        self.assertEqual(fe.read(77, MIB), data)


if __name__ == '__main__':
    spindle.run_tests()
