#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Upgrade in place that fails: whatever becomes of the successor, the one that runs goes on.

KILLS=n successors killed at random moments (20); SEED=n repeats a run."""
import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading

from takeovercase import (F, MIB, Load, Peer, TakeoverCase, drive, drive_for, spindle, time, ALIVE,
                          CONFIG, CONTROLLER, END, FAILED, GIVEN, HEADER, HELLO, KEPT, MAGIC,
                          POSITION, PREPARED, RPC, SESSION, STARTED, TAKEN)
from vhostcase import fd_count

KILLS = int(os.environ.get('KILLS', '20'))
# Of a Ceph client; it opens nothing.
KEY = 'AQAA8VNlAAAAABAAMDEyMzQ1Njc4OWFiY2RlZg=='
SEED = int(os.environ.get('SEED', '0')) or random.SystemRandom().randrange(1, 1 << 30)


class Steps(TakeoverCase):
    """A successor by hand that fails in one way; all is as it was, and a real one succeeds."""

    def setUp(self):
        self.t = self.target('0x1')
        self.names = [f'c{i}' for i in range(3)]
        paths = [self.disk(self.t, n, f'm{i}') for i, n in enumerate(self.names)]
        self.loads = [Load(self.connect(p, mem_size=8 * MIB, queues=2, indirect=True), 16)
                      for p in paths[:2]]
        drive_for(self.loads, 0.05)
        self.t.rpc('bdev_get_bdevs')
        self.fds = fd_count(self.t)
        self.standing = self.files(self.t, *self.names)

    def peer(self):
        peer = Peer.successor(self.t)
        self.addCleanup(peer.close)
        return peer

    def aside(self, work):
        """Runs work() in a thread, under load all the while."""
        wrong = []

        def run():
            try:
                work()
            except Exception as e:  # pylint: disable=broad-except
                wrong.append(e)
        thread = threading.Thread(target=run)
        thread.start()
        drive(self.loads, lambda: not thread.is_alive(), 30, 'a pretended successor')
        thread.join()
        if wrong:
            raise wrong[0]

    def fails(self, work, why='', timeout=10):
        """work(peer) is a successor; afterwards everything must be as it was before."""
        def run():
            peer = self.peer()
            work(peer)
            peer.close()
        self.aside(run)
        self.wait_kept(self.t, self.loads, timeout=timeout)
        self.assertIn(why, self.t.log())
        self.check_load(self.loads)
        self.assertEqual(self.files(self.t, *self.names), self.standing)
        self.check_serves(self.t, *self.names)
        spindle.wait_until(lambda: fd_count(self.t) <= self.fds, 5,
                           f'{self.fds} fds, not {fd_count(self.t)}')
        drive_for(self.loads, 0.02)
        self.take_over(self.t, loads=self.loads)
        self.check_load(self.loads)

    def test_gone_after_the_request(self):
        self.fails(lambda peer: self.t.wait_log('a successor has come'))

    def test_gone_with_the_request(self):
        # Whether it is seen before its connection's end or not, nothing comes of it.
        for _ in range(10):
            self.peer().close()
        drive_for(self.loads, 0.3)
        drive(self.loads, lambda: self.t.log().count('a successor has come') ==
              self.t.log().count(KEPT), 10, 'the predecessor goes on')
        self.check_load(self.loads)
        self.check_serves(self.t, *self.names)
        self.take_over(self.t, loads=self.loads)

    def test_gone_amid_the_records(self):
        self.fails(lambda peer: [peer.recv() for _ in range(4)])

    def test_gone_before_prepared(self):
        self.fails(lambda peer: peer.batch(), 'the successor is gone')

    def test_gone_after_prepared(self):
        def work(peer):
            peer.batch()
            peer.send(PREPARED)
        self.fails(work)

    def test_gone_amid_positions(self):
        def work(peer):
            peer.batch()
            peer.send(PREPARED)
            self.assertEqual(peer.recv()[0], POSITION)
        self.fails(work)

    def stopped(self, peer):
        """Up to the point where all rings stand still."""
        peer.batch()
        peer.send(PREPARED)
        records = peer.batch()
        self.assertEqual([kind for kind, _ in records].count(ALIVE), 2)

    def test_gone_before_started(self):
        self.fails(self.stopped, 'the successor is gone')

    def test_says_it_has_failed(self):
        def work(peer):
            peer.batch()
            peer.send(FAILED, b'no room for a bdev\0')
            time.sleep(0.1)
        self.fails(work, 'no room for a bdev')

    def test_says_it_has_failed_late(self):
        def work(peer):
            self.stopped(peer)
            peer.send(FAILED, b'cannot start\0')
        self.fails(work, 'cannot start')

    def test_garbage_for_prepared(self):
        def work(peer):
            peer.batch()
            peer.sock.sendall(b'\xa5' * 4096)
            time.sleep(0.1)
        self.fails(work)

    def test_garbage_for_started(self):
        def work(peer):
            self.stopped(peer)
            peer.sock.sendall(b'\xa5' * 4096)
            time.sleep(0.1)
        self.fails(work)

    def test_garbage_with_descriptors(self):
        def work(peer):
            peer.batch()
            with open('/dev/null', 'rb') as null:
                peer.send(FAILED, b'x\0', [null.fileno()] * 4)
                # It may have hung up already.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    peer.send(PREPARED, b'', [null.fileno()] * 12)
        self.fails(work)

    def test_too_long_a_record(self):
        def work(peer):
            peer.batch()
            peer.sock.sendall(HEADER.pack(MAGIC, PREPARED, 0, 0xffffffff))
            time.sleep(0.1)
        self.fails(work)

    def test_half_a_header(self):
        def work(peer):
            self.stopped(peer)
            peer.sock.sendall(HEADER.pack(MAGIC, STARTED, 0, 0)[:7])
        self.fails(work)

    def test_started_too_early(self):
        # Before it was told where the rings stand it cannot have started them.
        def work(peer):
            peer.batch()
            peer.send(STARTED)
            time.sleep(0.1)
        self.fails(work)

    def test_prepared_twice(self):
        def work(peer):
            self.stopped(peer)
            peer.send(PREPARED)
            time.sleep(0.1)
        self.fails(work)

    def test_other_records_before_prepared(self):
        # What is no end of a batch is passed over.
        def work(peer):
            peer.batch()
            peer.send(HELLO, b'\0' * 3)
            peer.send(SESSION)
            peer.send(FAILED, b'enough\0')
        self.fails(work, 'enough')

    def test_says_no_more(self):
        # The rings stand still for as long as it may take to say STARTED, no longer.
        peer = []

        def work():
            peer.append(self.peer())
            self.stopped(peer[0])
        self.aside(work)
        self.wait_kept(self.t, self.loads, timeout=15)
        # What it says now comes too late.
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            peer[0].send(STARTED)
            peer[0].send(STARTED)
        self.check_load(self.loads)
        self.check_serves(self.t, *self.names)

    def test_told_why(self):
        # A predecessor that gives up says so to a successor that still listens.
        def work(peer):
            peer.batch()
            peer.send(END)
            kind, body = peer.recv()
            self.assertEqual(kind, FAILED)
            self.assertIn(b'preparations', body)
        self.fails(work)

    def test_wrong_version(self):
        for version in (0, 2, 4294967295):
            with self.t.raw() as c:
                with self.assertRaises(spindle.RpcError) as caught:
                    c.call('framework_takeover', {'version': version})
                self.assertIn('we hand over by version 1', str(caught.exception))
                # A refused one is a client as before.
                self.assertTrue(c.call('bdev_get_bdevs'))
        self.assertNotIn(KEPT, self.t.log())
        self.check_load(self.loads)

    def test_records_are_complete(self):
        peer = self.peer()
        self.aside(lambda: self.kinds.extend(peer.batch()))
        kinds = [kind for kind, _ in self.kinds]
        self.assertEqual(kinds[0], HELLO)
        self.assertEqual(struct.unpack('<IIi', self.kinds[0][1])[1:], (1, self.t.pid))
        self.assertEqual((kinds.count(CONTROLLER), kinds.count(SESSION), kinds.count(RPC)),
                         (3, 2, 1))
        config = json.loads(dict(self.kinds)[CONFIG])
        self.assertEqual([s['subsystem'] for s in config['subsystems']], ['bdev', 'vhost_blk'])

    kinds = []


class Stuck(TakeoverCase):
    """A disk whose requests do not end: the takeover is refused, and no other guest pays for it."""

    def setUp(self):
        self.t = self.target('0x1')
        self.load = Load(self.connect(self.disk(self.t), mem_size=8 * MIB), 16)
        self.bad = self.error(self.t, self.malloc(self.t, 'm1'))
        self.fe = self.connect(self.ctrlr(self.t, 'c1', self.bad), mem_size=2 * MIB)
        # Its messages are through: they would wait during a takeover.
        self.check_io(self.fe)
        self.inject(self.t, self.bad, 'write', 'pending')

    def stick(self):
        self.fe.q[0].submit(F.T_OUT, 0, [(self.fe.alloc(4096), 4096)])
        spindle.wait_until(lambda: self.sessions(self.t, 'c1')[0]['inflight_task_cnt'] == 1, 5,
                           'the request to be taken')

    def check_kept(self):
        self.check_load([self.load])
        self.check_serves(self.t, 'c0')
        self.assertEqual(self.fe.q[0].in_flight, 1)
        self.assertIn('c1', [c['ctrlr'] for c in self.t.rpc('vhost_get_controllers')])

    def test_for_long(self):
        # Refused before any ring is stopped: one that is started calls its guest.
        idle = self.connect(self.disk(self.t, 'c2', 'm2'), mem_size=2 * MIB)
        self.check_io(idle)
        self.stick()
        drive_for([self.load], 1.2 * spindle.SLOW)
        idle.q[0].call_pending(0)
        s = self.successor(self.t, '--takeover=1000')
        self.wait_kept(self.t, [self.load])
        drive([self.load], lambda: not s.running(), 10, 'the end of the successor')
        self.assertEqual(s.wait(), 1)
        for log in (self.t.log(), s.log()):
            self.assertIn('bdev EE_m1: a request has been in flight for', log)
        self.assertIn('the predecessor gives up', s.log())
        self.assertEqual(idle.q[0].call_pending(0), 0)
        self.check_io(idle)
        self.check_kept()

    def test_at_the_last_moment(self):
        # The others are served while it is waited for.
        peer = Peer.successor(self.t, stop_ms=2000 * spindle.SLOW)
        self.addCleanup(peer.close)
        peer.batch()
        self.stick()
        peer.send(PREPARED)
        before = self.load.done
        self.wait_kept(self.t, [self.load], timeout=15)
        self.assertGreater(self.load.done - before, 500)
        self.assertIn('bdev EE_m1: its requests do not end', self.t.log())
        self.check_kept()

    def test_until_it_ends(self):
        # It is waited for, and the takeover succeeds.
        slow = self.delay(self.t, self.malloc(self.t, 'm2'), 300000)
        fe = self.connect(self.ctrlr(self.t, 'c2', slow), mem_size=2 * MIB)
        gpa = fe.alloc(4096)
        fe.mem_write(gpa, b's' * 4096)
        s = self.successor(self.t)
        while not fe.q[0].in_flight or (TAKEN not in s.log() and s.running()):
            if not fe.q[0].in_flight:
                fe.q[0].submit(F.T_OUT, 0, [(gpa, 4096)])
            drive_for([self.load], 0.01)
            fe.q[0].poll()
        self.wait_over(self.t, s, [self.load])
        fe.q[0].wait_all(fe.q[0].in_flight, 20 * spindle.SLOW)
        self.check_load([self.load])
        self.assertEqual(fe.read(0, 4096, timeout=20 * spindle.SLOW), b's' * 4096)

    def test_bad_limits(self):
        for ms in (0, 60001, -1, 'x'):
            with self.assertRaises(spindle.RpcError):
                self.t.rpc('framework_takeover', version=1, stop_ms=ms)
        for ms in ('0', '60001', 'x', '-1'):
            s = self.successor(self.t, f'--takeover={ms}')
            self.assertEqual(s.wait(), 1)
            self.assertIn('bad argument', s.log())


class Killed(TakeoverCase):
    """Real successors that are killed on the way, at random moments."""
    timeout = 60 + 3 * KILLS
    mib = 16

    def setUp(self):
        self.rng = random.Random(SEED)
        self.addCleanup(lambda: getattr(self, '_trouble', False) and print(f'SEED={SEED}'))

    def configure(self, t):
        self.file(t, mib=self.mib)
        self.ctrlr(t, 'c0', 'f0')

    def kills(self, number, rounds):
        t = self.target('0x1')
        self.configure(t)
        load = Load(self.connect(t.path('c0'), mem_size=8 * MIB, queues=2, indirect=True),
                    self.mib)
        drive_for([load], 0.1)
        began = time.monotonic()
        t = self.take_over(t, loads=[load])
        whole = min(time.monotonic() - began, 0.2 * spindle.SLOW)
        kept = late = 0
        load.forget_gap()
        for _ in range(rounds):
            before = t.log().count(KEPT)
            s = self.successor(t)
            drive_for([load], self.rng.uniform(0, whole))
            sent = TAKEN not in s.log()
            if sent:
                s.send_signal(number)
            # A signal that came too late for the takeover still ends it.
            drive([load], lambda s=s, sent=sent: not sent or not s.running(), 20, 'its end')
            if s.running() or GIVEN in t.log():
                # It was done, or died just after it had said so: that is a crash, or a stop.
                late += 1
                drive([load], lambda t=t: not t.running(), 20, 'the end of the predecessor')
                self.assertEqual(t.wait(), 0)
                if not s.running():
                    s = self.target('0x1', directory=t.dir, sock=t.sock)
                    if not s.rpc('bdev_get_bdevs'):
                        self.configure(s)
                    load.fe.reconnect()
                t = s
            else:
                kept += 1
                # SIGTERM ends it with status 1 as soon as it looks after signals.
                self.assertIn(s.wait(), (-number,) if number == signal.SIGKILL else (-number, 1))
                if 'a successor has come' in t.log():
                    drive([load], lambda: t.log().count(KEPT) + 1 >=
                          max(before, t.log().count('a successor has come')), 10, 'going on')
            drive_for([load], 0.02)
        drive_for([load], 0.1)
        load.drain()
        load.check_disk()
        self.check_serves(t, 'c0')
        t = self.take_over(t)
        self.check_serves(t, 'c0')
        print(f'     {kept} successors killed, {late} were faster; {load.done} I/Os, longest '
              f'pause {load.gap * 1e3:.0f} ms')

    def test_sigkill(self):
        self.kills(signal.SIGKILL, KILLS)

    def test_sigterm(self):
        self.kills(signal.SIGTERM, max(5, KILLS // 2))

    def test_predecessor_killed(self):
        # Nobody is left, so the successor must leave as well; a new target gets it all.
        for delay in (0.005, 0.02, 0.04):
            t = self.target('0x1')
            self.configure(t)
            load = Load(self.connect(t.path('c0'), mem_size=8 * MIB), self.mib)
            peer = Peer.successor(t)
            self.addCleanup(peer.close)
            peer.batch()
            t.kill()
            with self.assertRaises((EOFError, ConnectionResetError, BrokenPipeError)):
                peer.batch()
            t = self.target('0x1', directory=t.dir, sock=t.sock)
            self.configure(t)
            load.fe.reconnect()
            s = self.successor(t)
            time.sleep(delay)
            if TAKEN not in s.log():
                t.kill()
                spindle.wait_until(lambda s=s: TAKEN in s.log() or not s.running(), 20,
                                   'an end', 0.001)
                if s.running():
                    self.wait_over_dead(s, load)
                else:
                    self.assertEqual(s.wait(), 1)
            s.kill()

    def wait_over_dead(self, s, load):
        # STARTED had been said: it is the one that serves.
        drive_for([load], 0.1)
        self.check_serves(s, 'c0')


class CannotSucceed(TakeoverCase):
    """Successors that are told something wrong: status 1, a log that says what, and no harm."""

    def setUp(self):
        self.t = self.target('0x1')
        self.load = Load(self.connect(self.disk(self.t), mem_size=8 * MIB), 16)
        drive_for([self.load], 0.05)

    def refused(self, *args, why, mask=None, timeout=10, **kwargs):
        s = self.successor(self.t, *args, mask=mask, **kwargs)
        drive([self.load], lambda: not s.running(), timeout, 'the end of the successor')
        self.assertEqual(s.wait(), 1, s.log_tail())
        self.assertIn(why, s.log())
        drive([self.load], lambda: self.t.log().count('a successor has come') ==
              self.t.log().count(KEPT), 10, 'the predecessor goes on')
        self.check_load([self.load])
        self.check_serves(self.t, 'c0')
        return s

    def test_other_socket_directory(self):
        other = self.temp_dir()
        self.refused(why=f'its socket is not in {other}', directory=other)
        self.assertEqual([n for n in os.listdir(other) if not n.endswith('.log')], [])
        # One by another name is the same directory.
        link = os.path.join(other, 'link')
        os.symlink(self.t.dir, link)
        self.take_over(self.t, directory=link, loads=[self.load])
        self.check_load([self.load])

    def test_no_such_directory(self):
        self.refused('-S', '/nowhere/at/all', why='/nowhere/at/all')

    def test_missing_core(self):
        self.refused(mask='0x100000', why='core 20')

    def test_core_mask_without_a_controllers_core(self):
        spindle.need_cores(2)
        self.refused(mask='0x2', why='cpumask 0x1 is invalid')

    def test_bdev_that_cannot_be_opened(self):
        # More memory than the successor may take.
        self.malloc(self.t, 'big', 64)
        self.null(self.t, 'n1')
        began = time.monotonic()
        self.refused('-s', '1', why='takeover: ')
        self.assertLess(time.monotonic() - began, 10 * spindle.SLOW)

    def test_file_that_is_gone(self):
        name = self.file(self.t)
        load = Load(self.connect(self.ctrlr(self.t, 'cf', name), mem_size=8 * MIB), 16)
        drive_for([load], 0.05)
        os.rename(self.t.path('f0.img'), self.t.path('elsewhere'))
        self.refused(why='takeover: bdev f0: ')
        # Another file in its place is not that disk.
        with open(self.t.path('f0.img'), 'wb') as f:
            f.truncate(16 * MIB)
        self.refused(why='takeover: bdev f0: ')
        os.rename(self.t.path('elsewhere'), self.t.path('f0.img'))
        self.take_over(self.t, loads=[load, self.load])
        self.check_load([load, self.load])

    def test_few_descriptors(self):
        # Wherever they run out, the log says so, and the predecessor goes on.
        prlimit = spindle.need_tool('prlimit')
        for i in range(8):
            self.connect(self.disk(self.t, f'c{i + 1}', f'm{i + 1}'), mem_size=2 * MIB)
        gone = 0
        for limit in range(5, 120, 3):
            s = self.successor(self.t, prefix=[prlimit, f'--nofile={limit}', '--'])
            drive([self.load], lambda s=s: not s.running() or TAKEN in s.log(), 20, 'its end')
            if s.running():
                self.wait_over(self.t, s, [self.load])
                break
            gone += 1
            self.assertEqual(s.wait(), 1, s.log_tail())
            self.assertRegex(s.log(), 'ERROR|prlimit|error while loading', f'limit {limit}')
            self.assertTrue(self.t.running())
        self.assertGreater(gone, 10)
        self.check_load([self.load])

    def test_unknown_rpc_method(self):
        self.refused('--rpcs-allowed', 'bdev_get_bdevs,what_is_this', why='what_is_this')

    def test_flags_that_do_not_go_together(self):
        self.refused('--no-rpc-server', why='do not go with it')
        self.refused('--wait-for-rpc', why='do not go with it')

    def test_no_predecessor(self):
        path = os.path.join(self.temp_dir(), 'rpc.sock')
        self.refused(why=f'no process to take over from at {path}', sock=path)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.close()
        self.refused(why=f'no process to take over from at {path}', sock=path)

    def pretended(self, answer, why):
        """A predecessor by hand, which says `answer` (bytes), or calls it."""
        path = os.path.join(self.temp_dir(), 'rpc.sock')
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            s = self.successor(self.t, sock=path)
            listener.settimeout(20 * spindle.SLOW)
            conn, _ = listener.accept()
            with conn:
                conn.recv(4096)
                if callable(answer):
                    answer(Peer(conn))
                else:
                    conn.sendall(answer)
                    conn.shutdown(socket.SHUT_WR)
                drive([self.load], lambda: not s.running(), 20, 'the end of the successor')
        self.assertEqual(s.wait(), 1, s.log_tail())
        self.assertIn(why, s.log())

    def test_predecessor_too_old(self):
        self.pretended(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":'
                       b'"Method not found"}}\n', 'Method not found')

    def test_predecessor_of_another_version(self):
        def answer(peer):
            peer.send(HELLO, struct.pack('<IIi', MAGIC, 2, os.getpid()))
            peer.send(CONFIG, b'{"subsystems": []}')
            peer.send(END)
        self.pretended(answer, 'speaks another version')

    def test_predecessor_that_makes_no_sense(self):
        self.pretended(b'', 'the predecessor\'s records')
        self.pretended(b'\0' * 64, 'the predecessor\'s records')
        self.pretended(b'Hello!' * 1000, 'the predecessor\'s records')
        self.pretended(lambda peer: (peer.send(HELLO), peer.send(END)),
                       'speaks another version')
        hello = struct.pack('<IIi', MAGIC, 1, os.getpid())
        for config in (b'', b'{', b'[]', b'{"subsystems": [{"subsystem": "bdev", "config": '
                       b'[{"method": "no_such_method"}]}]}'):
            self.pretended(lambda peer, c=config: (peer.send(HELLO, hello), peer.send(CONFIG, c),
                                                   peer.send(END)), 'takeover: ')
        for kind in (CONTROLLER, SESSION, 3, 4, RPC, 9):
            for body in (b'', b'x' * 8, b'\xff' * 2000):
                self.pretended(lambda peer, k=kind, b=body: (
                    peer.send(HELLO, hello), peer.send(CONFIG, b'{"subsystems": []}'),
                    peer.send(k, b), peer.send(END)), 'takeover: ')

    def test_predecessor_that_gives_up(self):
        hello = struct.pack('<IIi', MAGIC, 1, os.getpid())
        self.pretended(lambda peer: (peer.send(HELLO, hello),
                                     peer.send(FAILED, b'the weather\0')), 'the weather')

    def test_predecessor_that_gives_up_early(self):
        # It has hung up before we are prepared: what it said is there all the same.
        hello = struct.pack('<IIi', MAGIC, 1, os.getpid())

        def answer(peer):
            with socket.socket(socket.AF_UNIX) as a, socket.socket(socket.AF_UNIX) as b:
                peer.send(HELLO, hello)
                peer.send(CONFIG, b'{"subsystems": []}')
                peer.send(RPC, b'', (a.fileno(), b.fileno()))
                peer.send(END)
                peer.send(FAILED, b'the weather\0')
                peer.close()
        self.pretended(answer, 'the predecessor gives up: the weather')

    def test_secrets_reach_the_successor_only(self):
        config = {'subsystems': [{'subsystem': 'bdev', 'config': [
            {'method': 'bdev_rbd_create', 'params': {
                'name': 'r0', 'pool_name': 'rbd', 'rbd_name': 'x', 'block_size': 512,
                'config': {'mon_host': '127.0.0.1:1', 'key': KEY, 'client_mount_timeout':
                           '300'}}}]}]}
        path = os.path.join(self.temp_dir(), 'config.json')
        with open(path, 'w', encoding='utf-8') as f:
            json.dump(config, f)
        try:
            t = self.target('0x1', '-c', path)
        except spindle.TargetError as e:
            if 'no method "bdev_rbd_create"' in str(e):
                raise spindle.unittest.SkipTest('built without RBD') from None
            raise
        self.assertNotIn(KEY, t.cli('save_config').stdout)
        peer = Peer.successor(t)
        self.addCleanup(peer.close)
        self.assertIn(KEY.encode(), dict(peer.batch())[CONFIG])
        self.assertNotIn(KEY, t.cli('save_config').stdout)
        self.assertNotIn(KEY, t.log())


if __name__ == '__main__':
    spindle.run_tests()
