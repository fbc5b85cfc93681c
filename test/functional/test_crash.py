#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under load, a new target, a reconnect: the guest sees a pause and nothing else.

ROUNDS=n kills (10); SEED=n repeats a run."""
import errno
import os
import random
import time

from load import SECTOR, Load
from vhostcase import MIB, WAIT, VhostCase, spindle

ROUNDS = int(os.environ.get('ROUNDS', '10'))
SEED = int(os.environ.get('SEED', '0')) or random.SystemRandom().randrange(1, 1 << 30)


class Crash(VhostCase):
    """One guest per case, over all its kills."""
    timeout = 60 + 6 * ROUNDS
    mib = 16

    def setUp(self):
        self.rng = random.Random(SEED)
        self.addCleanup(self.tell_seed)

    def tell_seed(self):
        if getattr(self, '_trouble', False):
            print(f'SEED={SEED}')

    def configure(self, t, kind='uring', us=0):
        """The same configuration each time; the dead one's lock may last a moment longer."""
        def bdev():
            try:
                return self.file(t, mib=self.mib, kind=kind)
            except spindle.RpcError as e:
                self.assertEqual(e.code, -errno.EBUSY, str(e))
                return None
        name = spindle.wait_until(bdev, 10, 'the dead target\'s lock to go', interval=0.002)
        if us:
            name = self.delay(t, name, us)
        return self.ctrlr(t, 'c0', name, packed_ring=True)

    def kills(self, rounds, mask='0x3', kind='uring', us=0, **opts):
        t = self.target(mask)
        opts.setdefault('queues', 2)
        opts.setdefault('queue_size', 128)
        fe = self.connect(self.configure(t, kind, us), mem_size=8 * MIB, **opts)
        load = Load(fe, self.mib, 32, self.rng)
        pauses, caught = [], 0
        # A target may be done with all of them before the signal is there: then once more.
        while len(pauses) < rounds or (caught == 0 and len(pauses) < 5 * rounds):
            load.run(self.rng.uniform(0.02, 0.15))
            for q in fe.q:
                load.submit(q)
            t.kill()
            killed = time.monotonic()
            load.reap()
            caught += sum(q.in_flight for q in fe.q)
            # A guest goes on submitting while nobody is there.
            for q in fe.q:
                load.submit(q)
            t.start()
            self.configure(t, kind, us)
            fe.reconnect()
            spindle.wait_until(load.reap, WAIT * 2, 'the first I/O', interval=0)
            pauses.append(time.monotonic() - killed)
        load.run(0.1)
        load.drain()
        load.check_disk()
        fe.flush(timeout=WAIT)
        self.assertGreater(caught, 0)
        pauses.sort()
        print(f'     {len(pauses)} kills with {caught} requests in flight, {load.done} I/Os; '
              f'from kill to first I/O: median {pauses[len(pauses) // 2] * 1e3:.0f} ms, '
              f'longest {pauses[-1] * 1e3:.0f} ms')

    def test_split(self):
        self.kills(ROUNDS, indirect=True, event_idx=True)

    def test_packed(self):
        self.kills(ROUNDS, packed=True, indirect=True, event_idx=True)

    def test_split_direct(self):
        self.kills(max(2, ROUNDS // 3))

    def test_packed_direct_small_ring(self):
        # Laps and wraps: a ring that is full most of the time.
        self.kills(max(2, ROUNDS // 3), packed=True, queue_size=32)

    def test_slow_disk(self):
        # Most requests are in flight at the kill, and in each further one again.
        self.kills(max(2, ROUNDS // 3), us=30000, indirect=True)

    def test_slow_disk_packed(self):
        self.kills(max(2, ROUNDS // 3), us=30000, packed=True)

    def test_aio(self):
        self.kills(max(2, ROUNDS // 3), kind='aio', packed=True, indirect=True)

    def test_killed_while_it_resubmits(self):
        # No time to finish between two kills.
        t = self.target('0x3')
        fe = self.connect(self.configure(t, us=20000), mem_size=8 * MIB, queues=2, packed=True)
        load = Load(fe, self.mib, 32, self.rng)
        load.run(0.05)
        for _ in range(max(3, ROUNDS // 2)):
            t.kill()
            load.reap()
            t.start()
            self.configure(t, us=20000)
            fe.reconnect()
            time.sleep(self.rng.uniform(0, 0.03))
            load.reap()
        load.drain()
        load.check_disk()

    def test_connection_lost_under_load(self):
        # The target lives on; only the connection breaks, again and again.
        t = self.target('0x3')
        for packed in (False, True):
            fe = self.connect(self.configure(t) if not packed else t.path('c0'), mem_size=8 * MIB,
                              queues=2, packed=packed, indirect=True)
            load = Load(fe, self.mib, 32, self.rng)
            if packed:
                fe.write_zeroes([(0, self.mib * MIB // SECTOR)])
            for _ in range(ROUNDS):
                load.run(self.rng.uniform(0.005, 0.05))
                fe.reconnect()
            load.run(0.05)
            load.drain()
            load.check_disk()
            fe.destroy()


if __name__ == '__main__':
    spindle.run_tests()
