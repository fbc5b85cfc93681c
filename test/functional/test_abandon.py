#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Rings stopped with requests in flight (GET_VRING_BASE_SKIP_DRAIN): answered at once whatever the
storage does, nothing written afterwards, and what was left is done again after it has ended."""
import os
import random
import shutil
import socket
import subprocess
import struct
import time

import inflight
import migrate
from load import Load, drive
from takeovercase import TakeoverCase
from vhostcase import F, MIB, WAIT, VhostCase, fd_count, pattern, spindle

SIZE = 64           # of a ring
WRITES, READS = 3, 2
LEFT = WRITES + READS


class Case(VhostCase):
    packed = False

    def stuck(self, t, base):
        """A controller c0 on an error bdev whose requests never end; -> its socket."""
        self.name = self.error(t, base)
        path = self.ctrlr(t, 'c0', self.name, packed_ring=True)
        self.stall(t)
        return path

    def start(self, **opts):
        t = self.target('0x3')
        path = self.stuck(t, self.malloc(t))
        fe = self.guest(path, **opts)
        return t, fe

    def stall(self, t):
        self.inject(t, self.name, 'all', 'pending', num=1000)

    def release(self, t):
        """They end; as failed, which nobody may hear of."""
        self.inject(t, self.name, 'clear', 'clear')

    def guest(self, path, **opts):
        opts.setdefault('skip_drain', True)
        # Disabling a ring is waited for: it must not wait for requests either.
        opts.setdefault('style', 'qemu11')
        opts.setdefault('mem_size', 2 * MIB)
        return self.connect(path, queue_size=SIZE, packed=self.packed, **opts)

    def submit(self, fe, q=0, seed=1):
        """Writes of sectors 0, 1 and 2, and reads of 64 and 65."""
        queue = fe.q[q]
        data = fe.alloc(512 * LEFT, 512)
        for i in range(WRITES):
            fe.mem_write(data + 512 * i, pattern(512, seed + i))
            queue.submit(F.T_OUT, i, [(data + 512 * i, 512)], cookie=i)
        for i in range(WRITES, LEFT):
            fe.mem_write(data + 512 * i, b'\xee' * 512)
            queue.submit(F.T_IN, 64 + i, [(data + 512 * i, 512)], cookie=i)
        return data

    def wait_inflight(self, t, count, ctrlr='c0'):
        spindle.wait_until(lambda: sum(s['inflight_task_cnt'] for s in self.sessions(t, ctrlr))
                           == count, 5, f'{count} requests in flight')

    def counts(self, t, ctrlr='c0'):
        s = self.sessions(t, ctrlr)[-1]
        return s['waiting_queues'], s['abandoned_task_cnt']

    def wait_counts(self, t, waiting, abandoned, ctrlr='c0'):
        spindle.wait_until(lambda: self.counts(t, ctrlr) == (waiting, abandoned), 5,
                           f'{waiting} waiting, {abandoned} abandoned')

    def finish(self, fe, q=0, count=LEFT, seed=1):
        """All that was left ends, once, and well."""
        done = fe.q[q].wait_all(count, WAIT)
        self.assertEqual({d.status for d in done}, {F.S_OK})
        self.assertEqual(sorted(d.cookie for d in done), list(range(count)))
        self.assertEqual(fe.q[q].poll(), [])
        for i in range(WRITES):
            self.assertEqual(fe.read(i, 512, timeout=WAIT), pattern(512, seed + i))
        self.check_io(fe, q=q, sector=128)

    def frozen_disk(self, mib):
        if os.geteuid() != 0 or not shutil.which('fsfreeze'):
            raise spindle.unittest.SkipTest('needs root and fsfreeze')
        d = self.temp_dir()
        with open(d + '/fs', 'wb') as f:
            f.truncate(64 * MIB)
        os.mkdir(d + '/mnt')
        run = subprocess.run(['mkfs.ext4', '-q', d + '/fs'], check=False)
        if run.returncode or subprocess.run(['mount', '-o', 'loop', d + '/fs', d + '/mnt'],
                                            stderr=subprocess.PIPE, check=False).returncode:
            raise spindle.unittest.SkipTest('needs loop devices')
        self.mnt = d + '/mnt'
        self.addCleanup(subprocess.run, ['umount', self.mnt], check=False)
        self.addCleanup(subprocess.run, ['fsfreeze', '-u', self.mnt], check=False,
                        stderr=subprocess.PIPE)
        with open(self.mnt + '/image', 'wb') as f:
            f.write(bytes(mib * MIB))
        return self.mnt + '/image'

    def freeze(self, on=True):
        subprocess.run(['fsfreeze', '-f' if on else '-u', self.mnt], check=True)

    def image(self, mib=16):
        path = self.temp_dir() + '/image'
        with open(path, 'wb') as f:
            f.truncate(mib * MIB)
        return path


class Stop(Case):
    def left(self, **opts):
        """A guest whose ring was stopped over stalled requests."""
        t, fe = self.start(**opts)
        data = self.submit(fe)
        self.wait_inflight(t, LEFT)
        base = fe.q[0].leave()
        if not self.packed:
            self.assertEqual(base, LEFT)
        self.assertEqual(self.counts(t), (0, LEFT))
        t.wait_log(f'stopped with {LEFT} requests in flight')
        return t, fe, data

    def memory(self, fe):
        return fe.mem_read(0, fe.c.regions[0].size), inflight.region(fe).raw()

    def test_offered(self):
        t, fe = self.start(no_start=True)
        offered = fe.get_protocol_features()
        for bit in (F.PF_INFLIGHT_SHMFD, F.PF_GET_VRING_BASE_INFLIGHT,
                    F.PF_GET_VRING_BASE_SKIP_DRAIN):
            self.assertTrue(offered >> bit & 1, bit)
        # Unless it was negotiated there is no such message.
        fe.set_protocol_features(offered & ~(1 << F.PF_GET_VRING_BASE_SKIP_DRAIN))
        fe.send_raw(F.GET_VRING_BASE_SKIP_DRAIN, bytes(8))
        self.check_closed(fe)

    def test_nothing_is_written_afterwards(self):
        t, fe, _ = self.left()
        fe.log_start()
        before = self.memory(fe)
        fe.log_take()
        self.assertEqual(len(inflight.region(fe).in_flight()), LEFT)
        fe.q[0].call_pending(0)
        self.release(t)
        t.wait_log('left in flight have ended')
        self.assertEqual(self.memory(fe) == before, True)
        self.assertEqual(fe.log_take(), set())
        self.assertFalse(fe.q[0].call_pending(0.05))
        self.assertEqual(self.counts(t), (0, 0))

    def test_what_had_ended_was_told(self):
        t, fe = self.start()
        self.release(t)
        self.inject(t, self.name, 'read', 'pending', num=1000)
        for i in range(20):
            mark = fe.mem_mark()
            self.submit(fe)
            if i % 2:
                self.wait_inflight(t, READS)
            fe.q[0].leave()
            done = fe.q[0].poll()
            # Some or all of the writes, none of the reads.
            self.assertLessEqual({d.cookie for d in done}, set(range(WRITES)))
            self.assertLessEqual(len(inflight.region(fe).in_flight()), LEFT - len(done))
            if i % 2:
                self.assertEqual(len(inflight.region(fe).in_flight()), READS)
            self.inject(t, self.name, 'clear', 'clear')
            fe.start_rings()
            if len(done) < LEFT:
                fe.q[0].wait_all(LEFT - len(done), WAIT)
            fe.mem_release(mark)
            self.inject(t, self.name, 'read', 'pending', num=1000)

    def test_goes_on_where_it_was(self):
        # A migration that failed.
        t, fe, _ = self.left()
        fe.start_rings()
        self.wait_counts(t, 1, LEFT)
        t.wait_log('waits for requests that a stopped virtqueue left behind')
        self.assertEqual(fe.q[0].poll(), [])
        self.release(t)
        self.finish(fe)
        self.wait_counts(t, 0, 0)

    def test_left_again_and_again(self):
        t, fe, _ = self.left()
        self.release(t)
        for _ in range(5):
            self.stall(t)
            fe.start_rings()
            self.wait_inflight(t, LEFT)
            fe.q[0].leave()
            # Not even begun: the same answer, and the same region.
            before = self.memory(fe)
            fe.start_rings()
            self.wait_counts(t, 1, LEFT)
            fe.q[0].leave()
            self.assertEqual(self.memory(fe) == before, True)
            self.release(t)
            self.wait_counts(t, 0, 0)
        fe.start_rings()
        self.finish(fe)

    def test_drained_after_all(self):
        # GET_VRING_BASE of a ring that waits, and owes its guest requests: they come first.
        t, fe, _ = self.left()
        fe.start_rings()
        self.wait_counts(t, 1, LEFT)
        fe.q[0].enable(False)
        fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
        self.assertTrue(fe.quiet(0.1))
        self.release(t)
        self.assertEqual(fe.recv(WAIT).request, F.GET_VRING_BASE)
        self.assertEqual(len(fe.q[0].poll()), LEFT)
        self.assertEqual(inflight.region(fe).in_flight(), [])

    def test_another_controller_of_the_bdev(self):
        t, fe, _ = self.left()
        source = migrate.leave(fe)
        other = self.ctrlr(t, 'c1', self.name, packed_ring=True)
        migrate.go(fe, other)
        self.wait_counts(t, 1, 0, 'c1')
        self.assertEqual(fe.q[0].poll(), [])
        self.release(t)
        self.finish(fe)
        source.close()
        self.wait_sessions(t, 0)

    def test_rings_that_run_are_let_be(self):
        t, fe = self.start(queues=2)
        self.release(t)
        other = self.guest(t.path('c0'))
        # It runs: one that starts while something is left behind has to wait for that.
        self.check_io(other, sector=80)
        self.inject(t, self.name, 'write', 'pending', num=WRITES)
        fe.q[0].submit(F.T_OUT, 0, [(fe.alloc(512), 512)])
        self.wait_inflight(t, 1)
        fe.q[0].leave()
        self.inject(t, self.name, 'write', 'pending', num=0)
        self.check_io(fe, q=1, sector=64)
        self.check_io(other, sector=72)

    def test_connection_lost(self):
        t, fe, _ = self.left()
        fe.reconnect()
        self.wait_counts(t, 1, 0)
        t.wait_log('waits for requests that the previous connection left behind')
        self.release(t)
        self.finish(fe)

    def test_connection_lost_for_good(self):
        t, fe, _ = self.left()
        fe.destroy()
        self.wait_sessions(t, 0)
        other = self.guest(t.path('c0'))
        # Other memory, but the same disk.
        self.wait_counts(t, 1, 0)
        self.release(t)
        self.check_io(other, sector=64)
        fds = fd_count(t)
        other.destroy()
        spindle.wait_until(lambda: fd_count(t) < fds, 3, 'its fds to go')

    def test_controller_deleted(self):
        t, fe, _ = self.left()
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.check_closed(fe)
        # Its name is free, and its bdev is not.
        fe.close()
        fe.open(self.ctrlr(t, 'c0', self.name, packed_ring=True))
        fe.start()
        self.wait_counts(t, 1, 0)
        self.release(t)
        self.finish(fe)

    def test_bdev_deleted(self):
        t, fe, _ = self.left()
        fe.start_rings()
        self.wait_counts(t, 1, LEFT)
        t.rpc('bdev_error_delete', name=self.name)
        # They are cancelled; done again, they find no disk.
        done = fe.q[0].wait_all(LEFT, WAIT)
        self.assertEqual({d.status for d in done}, {F.S_IOERR})
        t.rpc('vhost_controller_attach_bdev', ctrlr='c0', dev_name='m0')
        # Told when the ring has the disk: of its removal, and of the new one.
        fe.wait_config_change(2, WAIT)
        self.check_io(fe)

    def test_exit(self):
        t, fe, _ = self.left()
        self.assertLess(t.stop(), 4 * spindle.SLOW)

    def answered_when_ended(self, t, fe, request):
        """All LEFT requests are waited for, though not by disabling the ring."""
        if fe.has_protocol(F.PF_GET_VRING_BASE_INFLIGHT) and fe.has_protocol(
                F.PF_INFLIGHT_SHMFD):
            fe.q[0].enable(False)
        fe.send_raw(request, bytes(8))
        self.assertTrue(fe.quiet(0.1))
        self.release(t)
        self.assertEqual(fe.recv(WAIT).request, request)
        self.assertEqual(len(fe.q[0].poll()), LEFT)

    def test_without_a_region(self):
        t, fe = self.start(no_inflight=True)
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        self.answered_when_ended(t, fe, F.GET_VRING_BASE_SKIP_DRAIN)

    def test_the_usual_message_drains(self):
        t, fe = self.start()
        fe.log_start()
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        self.answered_when_ended(t, fe, F.GET_VRING_BASE)

    def test_by_the_feature_alone(self):
        # As long as a migration's log is on.
        t, fe = self.start(skip_drain=False, base_inflight=True)
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.log_start()
        fe.q[0].leave(F.GET_VRING_BASE)
        self.assertEqual(self.counts(t), (0, LEFT))
        fe.log_stop()
        self.release(t)
        self.stall(t)
        fe.start_rings()
        self.wait_inflight(t, LEFT)
        self.answered_when_ended(t, fe, F.GET_VRING_BASE)


    def test_disabled(self):
        # Nothing new is begun, what is in flight ends, and is told.
        t, fe = self.start()
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.q[0].enable(False)
        fe.q[0].submit(F.T_IN, 7, [(fe.alloc(512), 512)], cookie=9)
        self.release(t)
        self.assertEqual({d.cookie for d in fe.q[0].wait_all(LEFT, WAIT)}, set(range(LEFT)))
        time.sleep(0.1)
        self.assertEqual(fe.q[0].poll(), [])
        fe.q[0].enable()
        self.assertEqual([d.cookie for d in fe.q[0].wait_all(1, WAIT)], [9])
        self.check_io(fe)
        # Asleep or broken, on and off: once more.
        for _ in range(3):
            time.sleep(0.05)
            fe.q[0].enable(False)
            fe.q[0].enable(False)
            fe.q[0].enable()
            self.check_io(fe)
        fe.q[0].enable(False)
        fe.q[0].stop()
        fe.start_rings()
        self.check_io(fe)

    def test_disabled_without_the_feature(self):
        # Waited for by whichever message; and what is owed is done before the ring stops.
        t, fe = self.start(skip_drain=False)
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.send_raw(F.SET_VRING_ENABLE, struct.pack('<II', 0, 0))
        fe.send_raw(F.GET_VRING_BASE, struct.pack('<II', 0, 0))
        self.assertTrue(fe.quiet(0.1))
        self.release(t)
        self.assertEqual(fe.recv(WAIT).request, F.GET_VRING_BASE)
        self.assertEqual(len(fe.q[0].poll()), LEFT)


class StopPacked(Stop):
    packed = True


class Raised(Case):
    """A ring that drains already when it is to be left, or its session to end."""

    def drain(self, t, fe, request, payload):
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.send_raw(request, payload)
        self.assertTrue(fe.quiet(0.1))

    def draining(self, request=F.GET_VRING_BASE, payload=bytes(8)):
        t, fe = self.start()
        self.drain(t, fe, request, payload)
        return t, fe

    def lost(self, t, fe):
        """The connection goes: from then on nothing of the guest is touched, but by data."""
        region = inflight.region(fe)
        fe.close()
        self.wait_sessions(t, 0)
        before, fds = (fe.mem_read(0, fe.c.regions[0].size), region.raw()), fd_count(t)
        self.assertEqual(len(region.in_flight()), LEFT)
        self.release(t)
        spindle.wait_until(lambda: fd_count(t) < fds, 5, 'its fds to go')
        self.assertEqual((fe.mem_read(0, fe.c.regions[0].size), region.raw()) == before, True)

    def test_connection_lost(self):
        t, fe = self.draining()
        self.lost(t, fe)
        fe.open(t.path('c0'))
        fe.start()
        self.finish(fe)

    def test_connection_lost_and_back(self):
        t, fe = self.draining()
        fe.reconnect()
        self.wait_counts(t, 1, 0)
        self.release(t)
        # As failed, which the guest does not hear of: they are done again.
        self.finish(fe)

    def test_connection_lost_in_a_reset(self):
        t, fe = self.draining(F.RESET_DEVICE, b'')
        self.lost(t, fe)

    def test_reset_as_it_waits(self):
        t, fe = self.draining()
        fe.reconnect()
        self.wait_counts(t, 1, 0)
        fe.reset_device()
        # Kicked, but not enabled: it may not run, not even to do what it owes before it stops.
        fe.q[0].swap_kick()
        fe.get_vring_base(0)
        self.release(t)
        self.assertEqual(len(inflight.region(fe).in_flight()), LEFT)
        self.assertEqual(fe.q[0].poll(), [])

    def test_connection_lost_as_its_memory_changes(self):
        t, fe = self.start()
        r = fe.c.regions[0]
        self.drain(t, fe, F.REM_MEM_REG, struct.pack('<5Q', 0, r.gpa, r.size, r.uva, 0))
        self.lost(t, fe)

    def test_back_as_its_memory_changes(self):
        t, fe = self.start(no_inflight=True)
        r = fe.c.regions[0]
        self.drain(t, fe, F.REM_MEM_REG, struct.pack('<5Q', 0, r.gpa, r.size, r.uva, 0))
        fe.reconnect()
        self.wait_counts(t, 1, 0)
        self.release(t)
        self.finish(fe)

    def test_connection_lost_as_the_last_ends(self):
        t = self.target('0x3')
        fe = self.guest(self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 1500),
                                   packed_ring=True))
        rng = random.Random(5)
        for _ in range(40):
            mark = fe.mem_mark()
            self.submit(fe)
            fe.send_raw(F.GET_VRING_BASE, bytes(8))
            time.sleep(rng.uniform(0, 0.003))
            fe.reconnect()
            self.finish(fe)
            fe.mem_release(mark)

    def test_controller_deleted(self):
        t, fe = self.draining()
        t.rpc('vhost_delete_controller', ctrlr='c0')
        fds = fd_count(t)
        self.release(t)
        spindle.wait_until(lambda: fd_count(t) < fds, 5, 'its fds to go')
        self.assertEqual(len(inflight.region(fe).in_flight()), LEFT)

    def test_left_as_its_bdev_is_removed(self):
        image = self.frozen_disk(1)
        t = self.target('0x3')
        # Cleanups run backwards.
        self.addCleanup(t.kill)
        self.addCleanup(subprocess.run, ['fsfreeze', '-u', self.mnt], check=False,
                        stderr=subprocess.PIPE)
        t.rpc('bdev_uring_create', filename=image, name='f0', lock_in_use=True)
        fe = self.guest(self.ctrlr(t, 'c0', 'f0', packed_ring=True))
        self.freeze()
        for i in range(WRITES):
            fe.q[0].submit(F.T_OUT, i, [(fe.alloc(512, 512), 512)])
        self.wait_inflight(t, WRITES)
        # Answered when they have ended.
        with t.raw() as call:
            call.send({'jsonrpc': '2.0', 'id': 1, 'method': 'bdev_uring_delete',
                       'params': {'name': 'f0'}})
            t.wait_log('is being removed')
            # To disable the ring would wait, as it drains already.
            fe.q[0].leave(disable=False)
            self.assertEqual(self.counts(t), (0, WRITES))
            self.freeze(False)
            t.wait_log('left in flight have ended')
            self.assertEqual(len(inflight.region(fe).in_flight()), WRITES)


class RaisedPacked(Raised):
    packed = True


class Processes(Case):
    """Two targets and one file."""

    def two(self, **params):
        params.setdefault('lock_in_use', True)
        image = self.image()
        targets = [self.target('0x1'), self.target('0x2')]
        for t in targets:
            t.rpc('bdev_uring_create', filename=image, name='f0', **params)
        return targets

    def drains(self, **params):
        t = self.two(**params)[0]
        fe = self.guest(self.stuck(t, 'f0'))
        fe.q[0].submit(F.T_IN, 0, [(fe.alloc(512), 512)])
        self.wait_inflight(t, 1)
        fe.send_raw(F.GET_VRING_BASE_SKIP_DRAIN, bytes(8))
        self.assertTrue(fe.quiet(0.1))
        self.release(t)
        self.assertEqual(fe.recv(WAIT).request, F.GET_VRING_BASE_SKIP_DRAIN)
        self.assertEqual(len(fe.q[0].poll()), 1)

    def test_no_locks_no_order(self):
        self.drains(lock_in_use=False, no_lock=True)

    def test_readers_lock_nobody_out(self):
        self.drains(readonly=True)

    def moved(self, queues=1):
        """A guest waits at b for what it left at a. -> a, b, it, its connection to a"""
        a, b = self.two()
        fe = self.guest(self.stuck(a, 'f0'), queues=queues)
        for q in range(queues):
            self.submit(fe, q=q)
        self.wait_inflight(a, queues * LEFT)
        source = migrate.leave(fe)
        migrate.go(fe, self.ctrlr(b, 'c0', 'f0', packed_ring=True))
        self.wait_counts(b, queues, 0)
        return a, b, fe, source

    def test_the_other_waits_for_the_lock(self):
        a, b, fe, source = self.moved(queues=2)
        b.wait_log('waits until no other process uses f0')
        self.wait_counts(a, 0, 2 * LEFT)
        # The connection goes, the requests do not.
        source.close()
        self.wait_sessions(a, 0)
        self.assertEqual(self.counts(b), (2, 0))
        self.release(a)
        self.finish(fe)
        self.finish(fe, q=1)

    def test_the_source_is_killed(self):
        a, _, fe, source = self.moved()
        a.kill()
        self.finish(fe)
        source.close()

    def test_the_source_goes_on(self):
        # The destination gave up while it waited, with the same memory.
        a, b = self.two()
        fe = self.guest(self.stuck(a, 'f0'))
        self.submit(fe)
        self.wait_inflight(a, LEFT)
        protocol, source = fe.c.protocol, migrate.leave(fe)
        fe.close()
        fe.open(self.ctrlr(b, 'c0', 'f0', packed_ring=True))
        fe.start()
        self.wait_counts(b, 1, 0)
        fe.q[0].leave()
        fe.close()
        self.wait_sessions(b, 0)
        fe.adopt(source)
        source.close()
        fe.c.protocol, fe.c.memory_sent = protocol, True
        fe.start_rings()
        self.wait_counts(a, 1, LEFT)
        self.release(a)
        self.finish(fe)

    def test_ends_as_its_bdev_is_removed(self):
        """Its last ring stops because of that, and the answer finds nobody any more."""
        _, b, fe, source = self.moved()
        # What it owes is done before it stops; unless it makes no sense by then.
        fe.send_raw(F.GET_VRING_BASE, bytes(8))
        self.assertTrue(fe.quiet(0.1))
        inflight.region(fe).set(version=7)
        with socket.socket(fileno=os.dup(fe.fileno())) as s:
            s.shutdown(socket.SHUT_RD)
        b.rpc('bdev_uring_delete', name='f0')
        self.wait_sessions(b, 0)
        b.wait_log('makes no sense')
        b.rpc('vhost_delete_controller', ctrlr='c0')
        source.close()


class ProcessesPacked(Processes):
    packed = True


class Moves(Case):
    """To and fro under load. The file system is frozen meanwhile: writes wait in the kernel, and
    reach the file, from the memory of a guest that is long elsewhere, when it thaws."""
    rounds = 20

    def targets(self, mib):
        image = self.frozen_disk(mib)
        both = [self.target('0x1'), self.target('0x2')]
        for t in both:
            # Ended, or still under way in the kernel: each is left at times.
            t.rpc('bdev_uring_create', filename=image, name='f0', lock_in_use=True)
            self.ctrlr(t, 'c0', self.delay(t, 'f0', 2000), packed_ring=True)
        # Cleanups run backwards: the targets end before the umount.
        for t in both:
            self.addCleanup(t.kill)
        return both

    @spindle.timeout(120)
    def test_under_load(self):
        mib = 1
        here, there = self.targets(mib)
        rng = random.Random(7)
        fe = self.guest(here.path('c0'), queues=2, mem_size=8 * MIB)
        load = Load(fe, mib, depth=16, rng=rng)
        left = 0
        for i in range(self.rounds):
            end = load.done + 50
            drive([load], lambda: load.done > end, 20, 'progress')
            frozen = i % 4 != 3
            if frozen:
                self.freeze()
                drive([load], lambda: any(s for p in load.pending for _, s in p.values()), 5,
                      'a write')
            source = migrate.leave(fe)
            left += sum(len(inflight.region(fe, q.index).in_flight()) for q in fe.q)
            migrate.go(fe, there.path('c0'))
            if frozen:
                if i % 2:
                    source.close()
                self.freeze(False)
            here, there = there, here
            drive([load], lambda: load.done > end + 10, 20, 'progress after the move')
            source.close()
        load.drain()
        load.check_disk()
        self.assertGreater(left, 2 * self.rounds)


class MovesPacked(Moves):
    packed = True


class Takeover(TakeoverCase, Case):
    def test_waits_for_requests_that_were_left(self):
        t = self.target()
        fe = self.guest(self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 1500000)))
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.q[0].leave()
        fe.start_rings()
        self.wait_counts(t, 1, LEFT)
        for which in ('avg_read', 'p99_read', 'avg_write', 'p99_write'):
            t.rpc('bdev_delay_update_latency', delay_bdev_name='D_m0', latency_type=which,
                  latency_us=0)
        s = self.take_over(t)
        self.assertIn('left in flight have ended', t.log())
        self.assertNotIn('resubmitting', t.log())
        self.finish(fe)
        self.wait_counts(s, 0, 0)

    def test_of_a_paused_ring(self):
        # Disabled with slow requests on their way: they end, once, and nothing new begins before
        # it is enabled again.
        t = self.target()
        fe = self.guest(self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 300000)))
        self.submit(fe)
        self.wait_inflight(t, LEFT)
        fe.q[0].enable(False)
        fe.q[0].submit(F.T_IN, 7, [(fe.alloc(512), 512)], cookie=9)
        self.take_over(t)
        done = fe.q[0].wait_all(LEFT, WAIT)
        self.assertEqual(sorted((d.cookie, d.status) for d in done),
                         [(i, F.S_OK) for i in range(LEFT)])
        # Longer than the disk would need for it.
        time.sleep(0.6)
        self.assertEqual(fe.q[0].poll(), [])
        fe.q[0].enable()
        self.assertEqual([(d.cookie, d.status) for d in fe.q[0].wait_all(1, WAIT)], [(9, F.S_OK)])
        self.check_io(fe)


class TakeoverPacked(Takeover):
    packed = True


if __name__ == '__main__':
    spindle.run_tests()
