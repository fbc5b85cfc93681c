#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Guests that leave a target while their cluster stands still: the source answers at once with
requests in flight, the destination begins when those have ended, and no data are lost.

The OSD is stopped by SIGSTOP, so what was sent to it is executed later, when it goes on."""
import contextlib
import glob
import os
import signal
import time

from ceph import F, MIB, pattern, spindle
import inflight
import migrate
from test_rbd_continuity import ContinuityCase, LONG, SIZE, WRITEBACK

LATE = 0.3          # for things that must not happen


class Abandoned(ContinuityCase):
    def setUp(self):
        super().setUp()
        with open(self.cluster.dir + '/osd.pid') as f:
            self.osd = int(f.read())
        self.addCleanup(os.kill, self.osd, signal.SIGCONT)

    def stand_still(self, on=True):
        os.kill(self.osd, signal.SIGSTOP if on else signal.SIGCONT)
        # On a busy machine a process goes on for a while when it has been told to stop.
        if on:
            spindle.wait_until(self.is_still, 5, 'the OSD to stop', interval=0.001)

    def is_still(self):
        for task in glob.glob(f'/proc/{self.osd}/task/*/stat'):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(task) as f:
                if f.read().rpartition(')')[2].split()[0] != 'T':
                    return False
        return True

    def two(self, image, **params):
        targets = [self.serve(directory=self.temp_dir()) for _ in range(2)]
        return targets, [self.disk(t, image, name='r0', **params) for t in targets]

    def state(self, t):
        s = self.sessions(t)[-1]
        return s['waiting_queues'], s['abandoned_task_cnt']

    def left(self, fe):
        return sum(len(inflight.region(fe, q.index).in_flight()) for q in fe.q)

    def one_move(self, packed=False, **params):
        """What was written, cached and in flight is all there at the destination."""
        image = self.image(self.id().rpartition('.')[2], SIZE)
        (a, b), (here, there) = self.two(image, **params)
        fe = self.connect(here, queues=2, queue_size=64, mem_size=8 * MIB, timeout=LONG,
                          skip_drain=True, packed=packed)
        fe.write(0, pattern(MIB, 1), timeout=LONG)
        fe.flush(timeout=LONG)
        # In the cache, if there is one, and told to the guest.
        fe.write(0, pattern(4096, 2), timeout=LONG)
        self.stand_still()
        data = fe.alloc(5 * 4096, 4096)
        for i in range(1, 4):
            fe.mem_write(data + 4096 * i, pattern(4096, 2 + i))
            fe.q[0].submit(F.T_OUT, 8 * i, [(data + 4096 * i, 4096)], cookie=i)
        fe.q[0].submit(F.T_IN, 8 * 512, [(data, 4096)], cookie=4)
        fe.q[0].submit(F.T_FLUSH, 0, cookie=5)
        told, sources = set(), []

        def all_taken():
            told.update(c.cookie for c in fe.q[0].poll())
            return 2 <= self.left(fe) == 5 - len(told)
        spindle.wait_until(all_taken, 5, 'requests in flight')
        self.at_once('the answers', lambda: sources.append(migrate.leave(fe)))
        told |= {c.cookie for c in fe.q[0].poll()}
        self.assertEqual(self.left(fe), 5 - len(told))
        spindle.wait_until(lambda: self.state(a) == (0, 5 - len(told)), 5, 'what was left')
        before = inflight.region(fe).raw()
        migrate.go(fe, there)
        # The second ring owes nothing, but may not read what the source has yet to write.
        other = fe.alloc(4096, 4096)
        fe.q[1].submit(F.T_IN, 0, [(other, 4096)])
        spindle.wait_until(lambda: self.state(b) == (2, 0), 5, 'the destination to wait')
        b.wait_log('waits until what others began on r0 has ended')
        self.assertFalse(fe.q[0].call_pending(LATE) and fe.q[0].poll())
        self.assertEqual(inflight.region(fe).raw() == before, True)
        self.answers(a)
        self.answers(b)
        self.stand_still(False)
        fe.q[1].wait_all(1, LONG)
        self.assertEqual(fe.mem_read(other, 4096), pattern(4096, 2))
        done = fe.q[0].wait_all(5 - len(told), LONG)
        self.assertEqual({c.status for c in done}, {F.S_OK})
        self.assertEqual({c.cookie for c in done} | told, set(range(1, 6)))
        for i in range(4):
            self.assertEqual(fe.read(8 * i, 4096, timeout=LONG), pattern(4096, 2 + i), i)
        a.wait_log('left in flight have ended', timeout=LONG)
        self.assertEqual(self.state(b), (0, 0))
        sources[0].close()
        # From here on it is the other way round.
        fe.write(8, pattern(4096, 9), timeout=LONG)
        source = migrate.leave(fe)
        migrate.go(fe, here)
        self.assertEqual(fe.read(8, 4096, timeout=LONG), pattern(4096, 9))
        source.close()

    def test_cache_none(self):
        self.one_move(cache='none')

    def test_cache_writeback(self):
        self.one_move(cache='writeback')

    def test_cache_writethrough(self):
        self.one_move(cache='writethrough', config={'rbd_cache_policy': 'writethrough'})

    def test_packed(self):
        self.one_move(packed=True)

    def data_stand_still(self, on=True):
        """The other pool's objects; what is in the first goes on."""
        if on:
            self.cluster.ceph('osd', 'pool', 'set', 'otherpool', 'size', '2')
        self.cluster.ceph('osd', 'pool', 'set', 'otherpool', 'min_size', '2' if on else '1')

    def test_the_lock_stays_with_the_next_owner(self):
        """The source is asked for the lock before its requests end. What it does when they have
        must not take the lock away again: while it did, the destination's writes waited without
        it, and when the guest left there just then, they landed on newer ones."""
        image = self.image('stays', SIZE, '--data-pool', 'otherpool')
        (a, b), (here, there) = self.two(image, cache='writeback', user_id='admin',
                                         key_file=self.cluster.keyring('admin'))
        fe = self.connect(here, mem_size=8 * MIB, timeout=LONG, skip_drain=True)
        fe.write(0, pattern(4096, 1), timeout=LONG)
        fe.flush(timeout=LONG)
        source = self.owner(image)
        self.data_stand_still()
        self.addCleanup(self.data_stand_still, False)
        at = fe.alloc(4096, 4096)

        def is_stuck():
            fe.q[0].submit(F.T_IN, 64, [(at, 4096)])
            time.sleep(LATE)
            return not fe.q[0].poll()
        spindle.wait_until(is_stuck, 20, 'a read that waits')
        old = migrate.leave(fe)
        migrate.go(fe, there)
        spindle.wait_until(lambda: self.state(b) == (1, 0), 5, 'the destination to wait')
        time.sleep(LATE)
        self.assertEqual(self.state(a), (0, 1))
        self.data_stand_still(False)
        fe.q[0].wait_all(1, LONG)
        spindle.wait_until(lambda: self.state(a) == (0, 0), 10, 'the end of what was left')
        time.sleep(LATE)
        self.assertNotIn(self.owner(image), (source, None))
        old.close()

    def test_exclusive_within_one_target(self):
        image = self.image('exclusive', SIZE)
        t = self.serve()
        here = self.disk(t, image, name='r0', exclusive=True)
        there = self.ctrlr(t, 'c1', 'r0')
        fe = self.connect(here, timeout=LONG, mem_size=8 * MIB, skip_drain=True)
        fe.write(0, pattern(4096, 1), timeout=LONG)
        self.stand_still()
        fe.q[0].submit(F.T_IN, 64, [(fe.alloc(512), 512)])
        spindle.wait_until(lambda: self.left(fe), 5, 'a request in flight')
        source = migrate.leave(fe)
        migrate.go(fe, there)
        spindle.wait_until(lambda: self.sessions(t, 'c1')[-1]['waiting_queues'] == 1, 5, 'waiting')
        self.stand_still(False)
        fe.q[0].wait_all(1, LONG)
        self.assertEqual(fe.read(0, 4096, timeout=LONG), pattern(4096, 1))
        source.close()

    def drains(self, request, *args, written=False, **params):
        image = self.image(self.id().rpartition('.')[2], SIZE, *args)
        t = self.serve()
        fe = self.connect(self.disk(t, image, name='r0', **params), timeout=LONG,
                          mem_size=8 * MIB, skip_drain=True)
        fe.read(0, 512, timeout=LONG)
        if written:
            fe.write(0, pattern(512, 1), timeout=LONG)
        self.stand_still()
        fe.q[0].submit(request, 64, [(fe.alloc(512), 512)])
        spindle.wait_until(lambda: self.left(fe), 5, 'a request in flight')
        fe.send_raw(F.GET_VRING_BASE_SKIP_DRAIN, bytes(8))
        self.assertTrue(fe.quiet(LATE))
        self.stand_still(False)
        self.assertEqual(fe.recv(LONG).request, F.GET_VRING_BASE_SKIP_DRAIN)
        self.assertEqual(len(fe.q[0].poll()), 1)

    def test_image_without_a_lock(self):
        self.drains(F.T_OUT, '--image-feature', 'layering', cache='none')

    def test_throttled(self):
        """Writes that librbd holds back have not got to the lock yet."""
        self.drains(F.T_IN, written=True, cache='none', config={'rbd_qos_write_iops_limit': '900'})

    def test_lock_never_ours(self):
        # The very first write may still wait for the lock.
        self.drains(F.T_OUT, cache='none')

    def test_readonly(self):
        self.drains(F.T_IN, read_only=True)

    def to_and_fro(self, rounds=6, packed=False, **params):
        image = self.image(self.id().rpartition('.')[2], SIZE)
        targets, paths = self.two(image, **params)
        load = self.guest(paths[0], packed=packed, skip_drain=True)
        fe, left = load.fe, 0
        load.goes_on()
        for i in range(1, rounds + 1):
            load.goes_on(50)
            self.stand_still()
            load.run(0.05)
            source = migrate.leave(fe)
            load.reap()
            left += self.left(fe)
            if i % 3 == 0:
                source.close()
            migrate.go(fe, paths[i % 2])
            load.run(self.rng.uniform(0, 0.2))
            self.stand_still(False)
            spindle.wait_until(load.reap, 40, 'the first I/O', interval=0)
            source.close()
            self.assertTrue(targets[(i + 1) % 2].running())
        load.goes_on(500)
        load.finish()
        self.assertGreater(left, rounds)
        self.note(f'{rounds} moves with {left} requests in flight, {load.done} I/Os')

    def test_to_and_fro(self):
        self.to_and_fro(cache='none')

    def test_to_and_fro_packed(self):
        self.to_and_fro(cache='none', packed=True)

    def test_to_and_fro_cached(self):
        self.to_and_fro(rounds=3, cache='writeback', packed=True)

    def test_to_and_fro_cached_for_reading(self):
        self.to_and_fro(rounds=3, cache='writeback', config=WRITEBACK)

    def test_the_source_goes_on(self):
        image = self.image('back', SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0'), skip_drain=True)
        load.goes_on()
        self.stand_still()
        load.run(0.05)
        for q in load.fe.q:
            q.leave()
        load.reap()
        load.fe.start_rings()
        spindle.wait_until(lambda: self.state(t)[0] == 2, 5, 'both rings to wait')
        time.sleep(LATE)
        self.assertEqual(load.reap(), 0)
        self.stand_still(False)
        load.goes_on()
        load.finish()


if __name__ == '__main__':
    spindle.run_tests()
