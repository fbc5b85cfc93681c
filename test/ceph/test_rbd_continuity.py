#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Targets that are killed, replaced and migrated from, under load on RBD images: the guest sees a
pause and nothing else.

The load is that of load.py: every sector carries its number, the sequence number of its write
and a checksum, a block has one request at a time, and each read is compared with the last write
that has ended. A write lost, done over a newer one, completed twice or not at all is a failure.

ROUNDS=n kills, takeovers and rounds of migration (3, 3 and 10); SEED=n repeats a run."""
import json
import os
import random
import re
import signal
import time

from ceph import CephCase, F, MIB, POOL, SLOW, pattern, spindle
from load import BLOCK, Load

ROUNDS = int(os.environ.get('ROUNDS', '0'))
SEED = int(os.environ.get('SEED', '0')) or random.SystemRandom().randrange(1, 1 << 30)
PAGE = 4096
LONG = 20.0 * SLOW
SIZE = 8        # MiB of an image

# Writes stay in the cache for as long as they can.
WRITEBACK = {'rbd_cache_policy': 'writeback', 'rbd_cache_writethrough_until_flush': 'false',
             'rbd_cache_max_dirty_age': '30'}


class Guest(Load):
    """Load on two queues, and the longest time without a completion."""
    DEPTH = 16

    def __init__(self, fe, rng, mib=SIZE):
        super().__init__(fe, mib, self.DEPTH, rng)
        self.was_read = set()       # pages
        self.forget_gap()

    def forget_gap(self):
        self.gap, self.last = 0.0, time.monotonic()

    def submit_all(self):
        for q in self.fe.q:
            self.submit(q)

    def end(self, q, c):
        if not self.pending[q.index][c.cookie][1]:
            self.was_read.add((self.buffers[q.index] + BLOCK * c.cookie) // PAGE)
        super().end(q, c)

    def reap(self):
        count = super().reap()
        if count:
            now = time.monotonic()
            self.gap, self.last = max(self.gap, now - self.last), now
        return count

    def drive(self, condition, what, seconds=20):
        """Goes on until condition(), asked now and then, is true."""
        end, look = time.monotonic() + seconds * SLOW, 0.0
        while True:
            self.submit_all()
            self.reap()
            now = time.monotonic()
            if now >= look:
                value, look = condition(), now + 0.005
                if value:
                    return value
            if now > end:
                raise AssertionError(f'{what}: not within {seconds * SLOW} s of load')

    def goes_on(self, more=200):
        goal = self.done + more
        self.drive(lambda: self.done >= goal, 'the load')

    def finish(self):
        """Everything ends, once, and the disk holds what was written last."""
        for q in self.fe.q:
            for c in q.wait_all(q.in_flight, LONG):
                self.end(q, c)
            if q.poll():
                raise AssertionError('more completions than requests')
        self.fe.flush(timeout=LONG)
        self.check_disk()

    def caught(self):
        return sum(q.in_flight for q in self.fe.q)


class ContinuityCase(CephCase):
    timeout = 100 + 8 * ROUNDS

    def setUp(self):
        self.cluster.start()
        self.dir = self.temp_dir()
        self.rng = random.Random(SEED)
        self.addCleanup(self.tell_seed)

    def tell_seed(self):
        if getattr(self, '_trouble', False):
            print(f'SEED={SEED}')

    def serve(self, *args, **kw):
        kw.setdefault('directory', self.dir)
        return self.target('0x3', '--poll-us', '100', '--state',
                           os.path.join(kw['directory'], 'state.json'), *args, **kw)

    def guest(self, path, **opts):
        opts.setdefault('indirect', True)
        fe = self.connect(path, queues=2, queue_size=64, mem_size=8 * MIB, timeout=LONG, **opts)
        return Guest(fe, self.rng)

    def reconnect(self, load, seconds=40):
        """As QEMU does: until somebody listens. The old socket may be there still."""
        def connected():
            try:
                load.fe.reconnect()
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            return True
        spindle.wait_until(connected, seconds, 'the controller', interval=0.005)

    def owner(self, image):
        """The client that has its lock; None: nobody."""
        locks = json.loads(self.cluster.rbd('lock', 'ls', '--format', 'json', f'{POOL}/{image}'))
        return locks[0]['address'] if locks else None

    def blocklist(self):
        return re.findall(r'^(\S+:\d+/\d+) ', self.cluster.ceph('osd', 'blocklist', 'ls'), re.M)

    def watchers(self, image):
        status = json.loads(self.cluster.rbd('status', '--format', 'json', f'{POOL}/{image}'))
        return [w['address'] for w in status['watchers']]

    def times(self, name, seconds):
        ms = sorted(1e3 * s for s in seconds)
        return f'{name}: median {ms[len(ms) // 2]:.0f} ms, longest {ms[-1]:.0f} ms'


class Killed(ContinuityCase):
    def one_kill(self, t, load):
        """-> seconds from the kill to the first I/O"""
        load.run(self.rng.uniform(0.05, 0.2))
        load.submit_all()
        t.kill()
        killed = time.monotonic()
        load.reap()
        self.caught += load.caught()
        # A guest goes on while nobody is there.
        load.submit_all()
        t.start()
        self.reconnect(load)
        spindle.wait_until(load.reap, 40, 'the first I/O', interval=0)
        return time.monotonic() - killed

    def kills(self, rounds, image_args=(), locked=True, packed=False, **params):
        image = self.image(self.id().rpartition('.')[2], SIZE, *image_args)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', cache='none', **params), packed=packed)
        self.caught, pauses, dead = 0, [], []
        load.goes_on()
        for _ in range(rounds):
            dead += self.watchers(image)
            if locked:
                self.assertIn(self.owner(image), dead[-1:])
            pauses.append(self.one_kill(t, load))
        load.run(0.1)
        load.finish()
        self.assertEqual(set(dead) - set(self.blocklist()), set(), 'not fenced')
        self.assertGreater(self.caught, 0)
        self.note(f'{rounds} kills with {self.caught} requests in flight, {load.done} I/Os; '
                  + self.times('from kill to first I/O', pauses))

    def test_shared(self):
        self.kills(ROUNDS or 3)

    def test_exclusive(self):
        self.kills(ROUNDS or 3, exclusive=True, packed=True)

    def test_no_lock(self):
        """Nothing to break, but late writes to keep away all the same."""
        self.kills(max(2, ROUNDS // 3), locked=False,
                   image_args=('--image-feature', 'layering'))

    def test_fenced_before_anybody_can_write(self):
        """Dead clients are on the blocklist before their successor listens."""
        images = [self.image('first', SIZE), self.image('second', SIZE, '--image-feature', 'layering')]
        t = self.serve()
        loads = [self.guest(self.disk(t, image, name='b.' + image, ctrlr='c.' + image,
                                      cache='none')) for image in images]
        for load in loads:
            load.goes_on()
        dead = {a for image in images for a in self.watchers(image)}
        for load in loads:
            load.submit_all()
        t.kill()
        t.start()
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 20, 'the disks')
        self.assertEqual(dead - set(self.blocklist()), set())
        for load in loads:
            self.reconnect(load)
            load.finish()

    def stop_osd(self):
        with open(self.cluster.dir + '/osd.pid') as f:
            osd = int(f.read())
        os.kill(osd, signal.SIGSTOP)
        self.addCleanup(os.kill, osd, signal.SIGCONT)
        return osd

    def acknowledged(self, **params):
        """Writes to an OSD that does not answer, and a kill: -> (how many of them were answered,
        how many of those are lost)."""
        image = self.image(f'ack{len(params)}', SIZE)
        t = self.serve(directory=self.temp_dir())
        fe = self.connect(self.disk(t, image, name='r0', **params), queue_size=256,
                          mem_size=16 * MIB, timeout=LONG)
        # librbd writes through until a guest has flushed once.
        fe.write(0, pattern(4096, 0), timeout=LONG)
        fe.flush(timeout=LONG)
        q, size, count = fe.q[0], 65536, 60
        gpa = fe.alloc(size * count, 4096)
        osd = self.stop_osd()
        for i in range(count):
            fe.mem_write(gpa + i * size, pattern(size, 100 + i))
            q.submit(F.T_OUT, i * size // 512, [(gpa + i * size, size)], cookie=i)
        time.sleep(0.5)
        answered = [c.cookie for c in q.poll() if c.status == F.S_OK]
        t.kill()
        os.kill(osd, signal.SIGCONT)
        t.start()
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 20, 'the disk')
        fe.reconnect()
        q.wait_all(q.in_flight, LONG)
        lost = [i for i in answered
                if fe.read(i * size // 512, size, timeout=LONG) != pattern(size, 100 + i)]
        fe.destroy()
        t.stop()
        return len(answered), len(lost)

    def test_no_answered_write_is_lost(self):
        """The guest lives on and never knows: so not by default, whatever Ceph's own is."""
        self.note('%d writes answered, %d lost' % self.acknowledged(cache='writeback'))
        answered, lost = self.acknowledged()
        self.note(f'by default {answered} writes answered, {lost} lost')
        self.assertEqual(lost, 0)

    def test_the_operators_word_counts(self):
        t = self.serve()
        for i, (cached, word) in enumerate((
                (False, {}), (True, {'cache': 'writeback'}), (False, {'cache': 'none'}),
                (False, {'cache': 'writethrough'}),
                (True, {'config': {'rbd_cache': 'true'}}))):
            name = self.create(t, self.image(f'op{i}', SIZE), name=f'o{i}', **word)
            fe = self.connect(self.ctrlr(t, f'c{i}', name), mem_size=2 * MIB)
            self.assertEqual(fe.get_config()[32], cached, word)
            fe.destroy()
        # Kept with an image; in ceph.conf.
        self.image('own', SIZE)
        self.cluster.rbd('config', 'image', 'set', f'{POOL}/own', 'rbd_cache', 'true')
        conf = os.path.join(self.dir, 'ceph.conf')
        with open(self.cluster.conf) as old, open(conf, 'w') as new:
            new.write(old.read() + '\n[client]\nrbd_cache = true\n')
        self.image('file', SIZE)
        for image, params in (('own', {}), ('file', {'config_file': conf})):
            name = self.create(t, image, name=image, **params)
            fe = self.connect(self.ctrlr(t, 'c' + image, name), mem_size=2 * MIB)
            self.assertEqual(fe.get_config()[32], 1, image)
            fe.destroy()
        # In the monitors' database; a connection of its own reads it.
        self.cluster.ceph('config', 'set', 'client', 'rbd_cache', 'true')
        self.addCleanup(self.cluster.ceph, 'config', 'rm', 'client', 'rbd_cache')
        name = self.create(t, self.image('mon', SIZE), name='mon', config={'rbd_op_threads': '1'})
        fe = self.connect(self.ctrlr(t, 'cmon', name), mem_size=2 * MIB)
        self.assertEqual(fe.get_config()[32], 1)
        fe.destroy()

    def test_leaving_in_order_fences_nobody(self):
        image = self.image('order', SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', cache='none'))
        load.goes_on()
        gone = self.watchers(image)
        load.drain()
        t.stop()
        t.start()
        self.reconnect(load)
        load.goes_on()
        load.finish()
        self.assertEqual(set(gone) & set(self.blocklist()), set())
        self.assertNotIn('predecessor', t.log())

    def test_writes_still_on_their_way(self):
        """What the dead one sent is in the OSD's sockets, unread, while its successor starts."""
        image = self.image('way', SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', cache='none'))
        with open(self.cluster.dir + '/osd.pid') as f:
            osd = int(f.read())
        self.addCleanup(os.kill, osd, signal.SIGCONT)
        for _ in range(max(2, ROUNDS // 3)):
            load.goes_on()
            os.kill(osd, signal.SIGSTOP)
            load.submit_all()
            time.sleep(0.1)
            t.kill()
            t.start()
            time.sleep(self.rng.uniform(0, 0.5))
            os.kill(osd, signal.SIGCONT)
            self.reconnect(load)
            # Every block again and again: an old write over it would be seen.
            load.goes_on(500)
        load.finish()


class TakenOver(ContinuityCase):
    def successor(self, t):
        if t.client:
            t.client.close()
            t.client = None
        s = self.serve('--takeover', start=False, sock=t.sock, directory=t.dir)
        return s.spawn()

    def takeovers(self, rounds, cache, **opts):
        image = self.image(self.id().rpartition('.')[2], SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', cache=cache), **opts)
        pauses, told = [], []
        for _ in range(rounds):
            load.run(0.05)
            load.forget_gap()
            s = self.successor(t)

            def over(s=s):
                self.assertTrue(s.running(), s.log_tail())
                return 'takeover: all is ours' in s.log()
            load.drive(over, 'a takeover')
            load.drive(lambda t=t: not t.running(), 'the end of the predecessor')
            load.goes_on()
            self.assertEqual(t.wait(), 0)
            pauses.append(load.gap)
            told.append(int(re.search(r'guests after (\d+) us', t.log()).group(1)) / 1e6)
            t = s
        load.finish()
        self.note(f'{rounds} takeovers, {load.done} I/Os; ' + self.times('pause', pauses)
                  + '; ' + self.times('between the targets', told))

    def test_cache_none(self):
        self.takeovers(ROUNDS or 3, 'none')

    def test_cache_writeback(self):
        self.takeovers(ROUNDS or 3, 'writeback', packed=True)

    def test_exclusive_is_refused(self):
        image = self.image('mine', SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', exclusive=True, cache='none'))
        owner = self.owner(image)
        for count in (1, 2):
            s = self.successor(t)
            load.drive(lambda s=s: not s.running(), 'the end of the successor')
            self.assertNotEqual(s.wait(), 0)
            self.assertEqual(t.log().count('r0: cannot be handed over: this process holds the '
                                           'exclusive lock'), count)
            load.goes_on()
            self.assertEqual(self.owner(image), owner)
        load.finish()
        self.note(s.log_tail(2))


class Migrated(ContinuityCase):
    """Between two processes with the same image; memory and rings stay where they are."""

    def two(self, image, **params):
        targets = [self.serve(directory=self.temp_dir()) for _ in range(2)]
        return targets, [self.disk(t, image, name='r0', **params) for t in targets]

    def move(self, load, path):
        """-> seconds without anybody who serves the rings"""
        fe = load.fe
        fe.log_start()
        # An answer says that the log is on; what ended before may not be in it.
        fe.get_features()
        load.reap()
        load.was_read.clear()
        load.run(0.05)
        began = time.monotonic()
        fe.stop()
        load.reap()
        log = fe.log_take()
        self.assertEqual(load.was_read - log, set(), 'read into and not logged')
        used = {(q.desc_gpa if q.packed else q.used_gpa) // PAGE for q in fe.q}
        self.assertEqual(used - log, set(), 'rings not logged')
        fe.log_stop()
        fe.close()
        load.submit_all()
        fe.open(path)
        fe.start()
        spindle.wait_until(load.reap, 40, 'the first I/O', interval=0)
        took = time.monotonic() - began
        self.assertEqual(fe.log_take(), set(), 'logged without a log')
        return took

    def back_and_forth(self, packed=False, **params):
        image = self.image(self.id().rpartition('.')[2], SIZE)
        targets, paths = self.two(image, **params)
        load = self.guest(paths[0], packed=packed)
        # Until its first flush, librbd writes through.
        load.finish()
        pauses = []
        for i in range(ROUNDS or 10):
            pauses.append(self.move(load, paths[(i + 1) % 2]))
        load.goes_on()
        load.finish()
        self.note(f'{len(pauses)} moves, {load.done} I/Os; ' + self.times('pause', pauses))
        return targets

    def test_cache_none(self):
        self.back_and_forth(cache='none')

    def test_cache_none_packed(self):
        self.back_and_forth(cache='none', packed=True)

    def test_cache_writeback(self):
        self.back_and_forth(cache='writeback')

    def test_caches(self):
        """Nothing is left behind in one target's cache, and nothing old found in the other's, even
        if the other never writes and so never asks for the lock."""
        image = self.image('caches', SIZE)
        _, paths = self.two(image, cache='writeback', config=WRITEBACK)
        fe = self.connect(paths[0], mem_size=8 * MIB, timeout=LONG)
        for i in range(4):
            data = pattern(65536, i + 1)
            fe.write(0, data, timeout=LONG)
            fe.stop()
            fe.close()
            fe.open(paths[1])
            fe.start()
            self.assertEqual(fe.read(0, 65536, timeout=LONG) == data, True, f'round {i}')
            fe.stop()
            fe.close()
            fe.open(paths[0])
            fe.start()

    def test_clean_caches_without_the_lock(self):
        """What was read before the guest went away is not read again when it is back: it has
        written meanwhile, and nobody but the lock, which is not there, tells librbd so."""
        image = self.image('clean', SIZE, '--image-feature', 'layering')
        _, paths = self.two(image, cache='writeback', config=WRITEBACK)
        fe = self.connect(paths[0], mem_size=8 * MIB, timeout=LONG)
        for i in range(6):
            data = pattern(65536, i + 1)
            fe.write(0, data, timeout=LONG)
            self.assertEqual(fe.read(0, 65536, timeout=LONG) == data, True)
            fe.stop()
            fe.close()
            fe.open(paths[(i + 1) % 2])
            fe.start()
            self.assertEqual(fe.read(0, 65536, timeout=LONG) == data, True, f'round {i}')

    def test_source_killed_when_it_has_the_lock(self):
        """Each has left its mark, the dead one's is not the last, and its lock is known all the
        same. The destination is dead as well: nobody else can break that lock."""
        image = self.image('source', SIZE)
        targets, paths = self.two(image, cache='none')
        load = self.guest(paths[0])
        load.goes_on()
        targets[1].kill()
        load.goes_on()
        began = time.monotonic()
        targets[0].kill()
        targets[0].start()
        self.reconnect(load)
        load.goes_on()
        took = time.monotonic() - began
        load.finish()
        self.note(f'from kill to I/O: {took:.2f} s')
        self.assertLess(took, 15 * SLOW)


class OsdToo(ContinuityCase):
    store = 'bluestore'

    def both_die(self, osd_first):
        image = self.image('osd' + str(int(osd_first)), SIZE)
        t = self.serve()
        load = self.guest(self.disk(t, image, name='r0', cache='none', timeout=5))
        for _ in range(max(1, ROUNDS // 5)):
            load.goes_on()
            self.cluster.kill_osd()
            load.submit_all()
            load.run(0.1)
            t.kill()
            load.reap()
            caught = load.caught()
            self.assertGreater(caught, 0)
            if osd_first:
                self.cluster.start_osd()
                t.start()
            else:
                t.start()
                self.cluster.start_osd()
            began = time.monotonic()
            self.reconnect(load, 60)
            spindle.wait_until(load.reap, 60, 'the first I/O', interval=0)
            took = time.monotonic() - began
            load.goes_on()
            self.note(f'{caught} requests in flight; first I/O {took:.2f} s after both are back')
        load.finish()

    def test_osd_comes_first(self):
        self.both_die(True)

    def test_target_comes_first(self):
        self.both_die(False)


if __name__ == '__main__':
    spindle.run_tests()
