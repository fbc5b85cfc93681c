#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Upgrade in place: takeovers that succeed, under load that a pause is all that is seen of.

TAKEOVERS=n takeovers in a row (5), STOP_MS=ms for the rings to stop (5000)."""
import fcntl
import os
import socket
import threading

from takeovercase import (F, MIB, Load, Pauses, Peer, TakeoverCase, drive, drive_for, spindle,
                          time, told_us, PREPARED, TAKEN)
from vhostcase import fd_count

TAKEOVERS = int(os.environ.get('TAKEOVERS', '5'))
PACKED = 'packed' in F.FLAGS


def need_packed():
    if not PACKED:
        raise spindle.unittest.SkipTest('the front end has no packed rings')


class UnderLoad(TakeoverCase):
    """One guest over many takeovers, each successor being the next predecessor."""
    timeout = 60 + 10 * TAKEOVERS
    mib = 16

    def disks(self, t, kind, count=1, **params):
        names = []
        for i in range(count):
            bdev = (self.malloc(t, f'b{i}', self.mib) if kind == 'malloc' else
                    self.file(t, f'b{i}', self.mib, kind=kind, **params))
            names.append(self.ctrlr(t, f'c{i}', bdev, packed_ring=True))
        return names

    def chain(self, kind, rounds=TAKEOVERS, mask='0x1', args=(), params=None, **opts):
        t = self.target(mask, *args)
        opts.setdefault('queues', 2)
        fe = self.connect(self.disks(t, kind, **(params or {}))[0], mem_size=8 * MIB, **opts)
        load = Load(fe, self.mib)
        session = self.sessions(t)[0]
        files = self.files(t, 'c0')
        pauses, told = Pauses([load]), []
        for _ in range(rounds):
            drive_for([load], 0.1)
            with pauses:
                s = self.take_over(t, *args, loads=[load])
            told.append(told_us(t))
            self.assertEqual(self.files(s, 'c0'), files)
            self.assertEqual(self.sessions(s)[0]['vid'], session['vid'])
            t = s
        self.check_load([load])
        self.check_serves(t)
        told.sort()
        print(f'     {rounds} takeovers, {load.done} I/Os; {pauses}; rings stopped: median '
              f'{told[len(told) // 2] / 1e3:.1f} ms, longest {told[-1] / 1e3:.1f} ms')
        return t

    def test_malloc(self):
        self.chain('malloc', indirect=True, event_idx=True)

    def test_file(self):
        self.chain('uring', indirect=True, event_idx=True)

    def test_aio(self):
        self.chain('aio', rounds=max(2, TAKEOVERS // 5))

    def test_file_locked_in_use(self):
        # Its locks go with the rings, so there is a moment without them.
        t = self.chain('uring', rounds=3, params={'lock_in_use': True})
        other = self.target('0x1')
        self.rpc_fails(other, -16, 'bdev_uring_create', name='f', filename=t.path('b0.img'),
                       block_size=512)

    def test_file_locks_are_held_throughout(self):
        t = self.target('0x1')
        load = Load(self.connect(self.disks(t, 'uring')[0], mem_size=8 * MIB), self.mib)
        path, other = t.path('b0.img'), self.target('0x1')
        stop, opened, tries = threading.Event(), [], [0]

        def intruder():
            while not stop.is_set():
                tries[0] += 1
                try:
                    opened.append(other.rpc('bdev_uring_create', name='f', filename=path,
                                            block_size=512))
                    return
                except spindle.RpcError:
                    pass
        thread = threading.Thread(target=intruder)
        thread.start()
        try:
            rounds = 0
            # On a busy machine it tries seldom.
            while rounds < 5 or tries[0] <= 20 and rounds < 50:
                drive_for([load], 0.05)
                t = self.take_over(t, loads=[load])
                rounds += 1
        finally:
            stop.set()
            thread.join()
        self.assertEqual(opened, [])
        self.assertGreater(tries[0], 20)
        self.check_load([load])

    def test_malloc_packed(self):
        need_packed()
        self.chain('malloc', packed=True, indirect=True, event_idx=True)

    def test_file_packed(self):
        need_packed()
        self.chain('uring', packed=True, queue_size=32)

    def test_front_end_without_inflight(self):
        # What is in flight is no more when the rings have stopped: nothing to be recovered.
        self.chain('malloc', rounds=max(2, TAKEOVERS // 5), no_inflight=True)

    def test_two_cores(self):
        spindle.need_cores(2)
        self.chain('uring', rounds=max(2, TAKEOVERS // 5), mask='0x3', queues=4)

    def test_sleeping_reactors(self):
        for args in (('--interrupt-mode',), ('--poll-us', '50')):
            with self.subTest(args=args):
                self.chain('malloc', rounds=2, args=args, event_idx=True)

    def test_front_end_without_kicks(self):
        self.chain('malloc', rounds=2, no_kick_fd=True)

    def test_disabled_ring(self):
        # It stands still in the successor as well, and goes on where it stood.
        for packed in (False, True)[:1 + PACKED]:
            t = self.target('0x1')
            fe = self.connect(self.disk(t), style='qemu11', packed=packed, mem_size=2 * MIB)
            fe.write(3, b'x' * 512)
            fe.q[0].enable(False)
            data = fe.alloc(512)
            fe.q[0].submit(F.T_IN, 3, [(data, 512)], cookie=9)
            t = self.take_over(t)
            time.sleep(0.1)
            self.assertEqual(fe.q[0].poll(), [])
            fe.q[0].enable()
            self.assertEqual([(d.cookie, d.status) for d in fe.q[0].wait_all(1)], [(9, F.S_OK)])
            self.assertEqual(fe.mem_read(data, 512), b'x' * 512)
            self.check_io(fe)
            t.stop()

    def test_no_fd_is_left_over(self):
        t = self.target('0x1', '--interrupt-mode')
        paths = self.disks(t, 'uring') + [self.ctrlr(t, 'm', self.malloc(t, 'm', 2))]
        loads = [Load(self.connect(paths[0], mem_size=8 * MIB, queues=2), self.mib),
                 Load(self.connect(paths[1], mem_size=8 * MIB), 2)]
        counts = []
        for _ in range(max(20, TAKEOVERS)):
            drive_for(loads, 0.01)
            t = self.take_over(t, '--interrupt-mode', loads=loads)
            drive_for(loads, 0.05)
            counts.append(fd_count(t))
        self.check_load(loads)
        # The first of them may still be closing what only the very first target had.
        self.assertLessEqual(max(counts[2:]), min(counts[2:]) + 1, counts)
        self.assertLessEqual(counts[-1], counts[2], counts)

    def many(self, kind):
        spindle.need_root()
        self.mib = 2
        t = self.target('0x1')
        paths = self.disks(t, kind, 64)
        fes = [self.connect(p, mem_size=2 * MIB) for p in paths]
        loads = [Load(fe, self.mib, depth=8) for fe in fes[::16]]
        pauses, told = Pauses(loads), []
        for _ in range(3):
            drive_for(loads, 0.2)
            with pauses:
                s = self.take_over(t, loads=loads)
            told.append(told_us(t))
            t = s
        self.check_load(loads)
        for i, fe in enumerate(fes):
            fe.write(8, bytes([i + 1]) * 4096, timeout=20 * spindle.SLOW)
        for i, fe in enumerate(fes):
            self.assertEqual(fe.read(8, 4096, timeout=20 * spindle.SLOW), bytes([i + 1]) * 4096)
        print(f'     64 {kind} disks; {pauses}; rings stopped: '
              + ', '.join(f'{us / 1e3:.1f}' for us in told) + ' ms')
        # The aim is 50 ms; a machine that is busy with other things adds to it.
        self.assertLess(min(told), 500e3 * spindle.SLOW)

    def test_64_malloc_disks(self):
        self.many('malloc')

    def test_64_files(self):
        self.many('uring')


class Meanwhile(TakeoverCase):
    """What happens beside a takeover."""

    def begin(self, t):
        """A takeover that waits for PREPARED: a successor by hand."""
        peer = Peer.successor(t)
        self.addCleanup(peer.close)
        peer.batch()
        return peer

    def test_rpc_reads_and_changes(self):
        t = self.target()
        self.disk(t)
        peer = self.begin(t)
        self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs')], ['m0'])
        self.assertEqual(len(t.rpc('vhost_get_controllers')), 1)
        self.assertEqual(t.cli('save_config').returncode, 0)
        for method, params in (
                ('bdev_null_create', {'name': 'n', 'num_blocks': 1, 'block_size': 512}),
                ('bdev_malloc_delete', {'name': 'm0'}),
                ('vhost_delete_controller', {'ctrlr': 'c0'}),
                ('vhost_controller_set_coalescing',
                 {'ctrlr': 'c0', 'delay_base_us': 0, 'iops_threshold': 60000})):
            self.rpc_busy(t, method, **params)
        peer.close()
        self.wait_kept(t)
        self.check_serves(t)

    def rpc_busy(self, t, method, **params):
        with self.assertRaises(spindle.RpcError) as caught:
            t.rpc(method, **params)
        self.assertIn('a successor is taking over', str(caught.exception))

    def test_a_second_successor_is_refused(self):
        t = self.target()
        fe = self.connect(self.disk(t), mem_size=8 * MIB)
        load = Load(fe, 16)
        peer = self.begin(t)
        s = self.successor(t)
        drive([load], lambda: not s.running(), 10, 'the end of the second')
        self.assertEqual(s.wait(), 1)
        self.assertIn('another successor is at it', s.log())
        peer.close()
        self.wait_kept(t, [load])
        self.check_load([load])
        self.check_serves(t, 'c0')
        self.take_over(t, loads=[load])
        self.check_load([load])

    def test_two_at_once(self):
        t = self.target()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        drive_for([load], 0.1)
        both = [self.successor(t), self.successor(t)]
        # Either the second finds the first at it, or it takes over from the first.
        drive([load], lambda: not t.running(), 20, 'the end of the predecessor')
        drive([load], lambda: all(TAKEN in s.log() or not s.running() for s in both), 20,
              'the end of both')
        drive([load], lambda: sum(s.running() for s in both) == 1, 10, 'one to be left')
        drive_for([load], 0.3)
        alive = [s for s in both if s.running()]
        self.assertEqual(len(alive), 1, [s.log_tail() for s in both])
        self.check_load([load])
        self.check_serves(alive[0], 'c0')

    def test_clients_that_connect_meanwhile(self):
        t = self.target()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        path = self.disk(t, 'c1', 'm1')
        stop, served, wrong = threading.Event(), [0], []

        def guests():
            while not stop.is_set():
                try:
                    with F.Frontend.connect(path, mem_size=2 * MIB,
                                            timeout=20 * spindle.SLOW) as fe:
                        fe.write(0, b'g' * 4096, timeout=20 * spindle.SLOW)
                    served[0] += 1
                except Exception as e:  # pylint: disable=broad-except
                    wrong.append(repr(e))
                    return

        answered = [0]

        def clients():
            # A connection may end with the process that has accepted it, never be refused.
            while not stop.is_set():
                try:
                    with spindle.RpcSocket(t.sock) as c:
                        c.call('bdev_get_bdevs')
                    answered[0] += 1
                except (EOFError, ConnectionResetError, BrokenPipeError):
                    pass
                except Exception as e:  # pylint: disable=broad-except
                    wrong.append(repr(e))
                    return

        threads = [threading.Thread(target=guests), threading.Thread(target=clients)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                drive_for([load], 0.1)
                t = self.take_over(t, loads=[load])
            drive_for([load], 0.1)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])
        self.assertGreater(min(served[0], answered[0]), 8, (served, answered))
        self.check_load([load])

    def test_clients_in_the_backlog(self):
        # Both connect while nobody accepts them; both are served by the successor.
        t = self.target()
        path = self.disk(t)
        peer = self.begin(t)
        fe = F.Frontend(mem_size=2 * MIB, timeout=20 * spindle.SLOW)
        self.addCleanup(fe.destroy)
        fe.open(path)
        peer.close()
        self.wait_kept(t)
        fe.start()
        fe.read(0, 4096)
        self.take_over(t)
        fe.read(0, 4096)

    def test_front_end_that_hangs_up(self):
        t = self.target()
        paths = [self.disk(t, f'c{i}', f'm{i}') for i in range(3)]
        load = Load(self.connect(paths[0], mem_size=8 * MIB), 16)
        for delay in (0, 0.005, 0.01, 0.02, 0.03, 0.05):
            fes = [self.connect(p, mem_size=2 * MIB) for p in paths[1:]]
            s = self.successor(t)
            drive_for([load], delay)
            fes[0].destroy()
            drive_for([load], 0.01)
            fes[1].destroy()
            self.wait_over(t, s, [load])
            t = s
            self.wait_sessions(t, 0, 'c1')
            self.wait_sessions(t, 0, 'c2')
        self.check_load([load])
        self.check_serves(t, 'c1', 'c2')

    def test_hang_up_at_each_step(self):
        t = self.target()
        paths = [self.disk(t, f'c{i}', f'm{i}') for i in range(2)]
        load = Load(self.connect(paths[0], mem_size=8 * MIB), 16)
        for step in range(3):
            fe = self.connect(paths[1], mem_size=2 * MIB)
            peer = Peer.successor(t)
            self.addCleanup(peer.close)
            peer.batch()
            if step == 0:
                fe.destroy()
            peer.send(PREPARED)
            if step == 1:
                fe.destroy()
            peer.batch()
            if step == 2:
                fe.destroy()
            peer.close()
            self.wait_kept(t, [load], step + 1)
            self.wait_sessions(t, 0, 'c1')
        self.check_load([load])
        self.check_serves(t, 'c1')

    def test_half_a_message(self):
        # It may come in two pieces; only what never comes whole costs its front end.
        t = self.target()
        paths = [self.disk(t, f'c{i}', f'm{i}') for i in range(3)]
        load = Load(self.connect(paths[0], mem_size=8 * MIB), 16)
        slow = self.connect(paths[1], mem_size=2 * MIB)
        stuck = self.connect(paths[2], mem_size=2 * MIB)
        message = (F.GET_FEATURES).to_bytes(4, 'little') + (1).to_bytes(4, 'little') + bytes(4)
        slow.send_bytes(message[:6])
        stuck.send_bytes(message[:6])
        drive_for([load], 0.05)
        s = self.successor(t)
        drive_for([load], 0.2)
        slow.send_bytes(message[6:])
        self.wait_over(t, s, [load])
        self.assertEqual(slow.recv(20 * spindle.SLOW).request, F.GET_FEATURES)
        self.check_io(slow)
        self.assertTrue(stuck.closed(20 * spindle.SLOW))
        self.check_load([load])
        self.check_serves(s, 'c2')

    def test_message_sent_meanwhile(self):
        t = self.target()
        fe = self.connect(self.disk(t), mem_size=2 * MIB)
        peer = self.begin(t)
        features = (F.GET_FEATURES).to_bytes(4, 'little') + (1).to_bytes(4, 'little') + bytes(4)
        fe.send_bytes(features)
        self.assertTrue(fe.quiet(0.1))
        peer.close()
        self.wait_kept(t)
        self.assertEqual(fe.recv(20 * spindle.SLOW).request, F.GET_FEATURES)
        self.check_io(fe)

    def test_signal_to_the_predecessor(self):
        # Asked to stop while it hands over: it stops in order, and its successor leaves.
        for step in range(3):
            with self.subTest(step=step):
                t = self.target()
                self.connect(self.disk(t), mem_size=2 * MIB)
                peer = Peer.successor(t)
                self.addCleanup(peer.close)
                if step > 0:
                    peer.batch()
                if step > 1:
                    peer.send(PREPARED)
                    peer.batch()
                self.assertLess(t.stop(), 5 * spindle.SLOW)
                self.assertFalse(os.path.exists(t.path('c0')))
                self.assertFalse(os.path.exists(t.sock))

    def test_controller_without_its_bdev(self):
        # Its guest sees errors before and after; the other guests nothing at all.
        t = self.target()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        fe = self.connect(self.disk(t, 'c1', 'm1'), mem_size=2 * MIB)
        t.rpc('bdev_malloc_delete', name='m1')
        self.check_fails(F.S_IOERR, fe.read, 0, 4096)
        t = self.take_over(t, loads=[load])
        self.check_load([load])
        self.check_fails(F.S_IOERR, fe.read, 0, 4096, timeout=20 * spindle.SLOW)
        self.assertEqual([c['ctrlr'] for c in t.rpc('vhost_get_controllers')], ['c0', 'c1'])
        # What its guest was told holds on: no larger blocks than those.
        self.malloc(t, 'm2', block_size=4096)
        self.rpc_fails(t, -32602, 'vhost_controller_attach_bdev', ctrlr='c1', dev_name='m2')
        self.malloc(t, 'm1')
        t.rpc('vhost_controller_attach_bdev', ctrlr='c1', dev_name='m1')
        fe.wait_config_change(2, 20 * spindle.SLOW)
        self.check_io(fe)

    def test_what_one_front_end_shared_is_gone(self):
        # Its connection goes; nobody else's, and not the takeover.
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.malloc(t)))
        other = self.connect(self.ctrlr(t, 'c1', self.malloc(t, 'm1')))
        fe.log_create()
        fe.log_send_base()
        os.ftruncate(fe.c.log_fd, 0)
        self.check_io(fe)
        s = self.take_over(t)
        self.assertTrue(fe.closed(20 * spindle.SLOW))
        self.check_io(other)
        s.wait_log('cannot be mapped any more')

    def test_requests_a_closed_session_left(self):
        # The successor must not serve that guest before its old requests have ended.
        t = self.target()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        slow = self.delay(t, self.malloc(t, 'm1'), 1000000)
        fe = self.connect(self.ctrlr(t, 'c1', slow), mem_size=2 * MIB)
        q = fe.q[0]
        gpa = fe.alloc(4096)
        began = time.monotonic()
        q.submit(F.T_OUT, 0, [(gpa, 4096)])
        spindle.wait_until(lambda: self.sessions(t, 'c1')[0]['inflight_task_cnt'] == 1, 5,
                           'the request to be in flight')
        drive_for([load], 0.1)
        fe.close()
        t = self.take_over(t, loads=[load])
        self.assertGreater(time.monotonic() - began, 0.8)
        self.check_load([load])


class Files(TakeoverCase):
    """Pid file, state file, core locks, what is pending."""

    def test_pidfile_and_state(self):
        t = self.target(start=False)
        args = ('--pidfile', t.path('pid'), '--state', t.path('state.json'))
        t.args = list(args)
        t.start()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        state = self.read(t.path('state.json'))
        for _ in range(3):
            drive_for([load], 0.05)
            t = self.take_over(t, *args, loads=[load])
            self.assertEqual(int(self.read(t.path('pid'))), t.pid)
            self.assertEqual(self.read(t.path('state.json')), state)
        # A change that was answered is in the file.
        t.rpc('bdev_null_create', name='n1', num_blocks=2048, block_size=512)
        self.assertIn('n1', self.read(t.path('state.json')))
        self.check_load([load])
        t.stop()
        self.assertFalse(os.path.exists(t.path('pid')))
        self.assertTrue(os.path.exists(t.path('state.json')))

    @staticmethod
    def read(path):
        with open(path, encoding='utf-8') as f:
            return f.read()

    def test_state_is_kept_from_the_first_answer_on(self):
        # Killed right after it has answered, while its predecessor may not even be gone.
        t = self.target(start=False)
        t.args = ['--state', t.path('state.json')]
        t.start()
        for i in range(5):
            s = self.successor(t, *t.args)
            spindle.wait_until(lambda s=s: TAKEN in s.log(), 20, 'a takeover', 0.001)
            s.rpc('bdev_null_create', name=f'n{i}', num_blocks=2048, block_size=512)
            s.kill()
            self.assertIn(f'"n{i}"', self.read(t.path('state.json')))
            self.assertEqual(t.wait(), 0)
            t = self.target(start=False, directory=t.dir, sock=t.sock)
            t.args = ['--state', t.path('state.json')]
            t.start()
            self.assertEqual(len(t.rpc('bdev_get_bdevs')), i + 1)

    def started_with_state(self):
        t = self.target(start=False)
        t.args = ['--state', t.path('state.json')]
        t.start()
        return t

    def test_successor_in_another_pid_namespace(self):
        # The predecessor's process id means nothing there.
        spindle.need_root()
        unshare = spindle.need_tool('unshare')
        t = self.started_with_state()
        s = self.successor(t, *t.args, prefix=[unshare, '--pid', '--fork', '--kill-child'])
        self.wait_over(t, s)
        s.rpc('bdev_null_create', name='n1', num_blocks=2048, block_size=512)
        self.assertIn('"n1"', self.read(t.path('state.json')))
        s.kill()

    def test_state_file_that_is_not_let_go_of(self):
        # Calls that change something wait for it, the others do not.
        t = self.started_with_state()
        with open(t.path('state.json.lock'), 'rb') as lock:
            holder = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX))
            holder.start()
            s = self.successor(t, *t.args)
            self.wait_over(t, s)
            holder.join()
            with spindle.RpcSocket(s.sock) as c:
                c.send({'jsonrpc': '2.0', 'id': 1, 'method': 'bdev_null_create',
                        'params': {'name': 'n1', 'num_blocks': 2048, 'block_size': 512}})
                self.assertTrue(c.silent(0.5))
                self.assertEqual([b['name'] for b in s.rpc('bdev_get_bdevs')], ['n1'])
                fcntl.flock(lock, fcntl.LOCK_UN)
                self.assertEqual(c.recv(20 * spindle.SLOW)['result'], 'n1')
        self.assertIn('"n1"', self.read(t.path('state.json')))

    def test_service_manager_is_told(self):
        t = self.target()
        path = t.path('notify')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.settimeout(20 * spindle.SLOW)
            s = self.successor(t, env={'NOTIFY_SOCKET': path})
            self.assertEqual(manager.recv(100).decode().split('\n'),
                             ['READY=1', f'MAINPID={s.pid}'])
            self.wait_over(t, s)
            s.client = None
            failed = self.successor(s, '-s', '0', env={'NOTIFY_SOCKET': path})
            self.assertEqual(failed.wait(), 1)
            manager.settimeout(0.1)
            with self.assertRaises(TimeoutError):
                manager.recv(100)

    def test_failed_successor_leaves_the_files(self):
        t = self.target(start=False)
        args = ('--pidfile', t.path('pid'), '--state', t.path('state.json'))
        t.args = list(args)
        t.start()
        self.disk(t)
        peer = Peer.successor(t)
        self.addCleanup(peer.close)
        s = self.successor(t, *args)
        self.assertEqual(s.wait(), 1)
        peer.close()
        self.wait_kept(t)
        self.assertEqual(int(self.read(t.path('pid'))), t.pid)
        t.rpc('bdev_null_create', name='n1', num_blocks=2048, block_size=512)
        self.assertIn('n1', self.read(t.path('state.json')))

    def test_core_locks(self):
        t = self.target(locks=True)
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        for _ in range(3):
            t = self.take_over(t, loads=[load])
            drive([load], lambda t=t: self.locked_by(0) == t.pid, 5, 'the core lock')
        self.check_load([load])
        other = self.target(start=False, locks=True)
        self.assertEqual(other.run_to_exit(), 1)
        self.assertIn('in use by process', other.log())

    @staticmethod
    def locked_by(core):
        try:
            with open(f'/var/tmp/spdk_cpu_lock_{core:03}', 'rb') as f:
                return int.from_bytes(f.read(4), 'little')
        except FileNotFoundError:
            return 0

    def test_pending_survives(self):
        t = self.target(start=False)
        late = t.path('late.img')
        with open(t.path('state.json'), 'w', encoding='utf-8') as f:
            f.write('{"subsystems": [{"subsystem": "bdev", "config": [{"method": '
                    '"bdev_uring_create", "params": {"name": "late", "block_size": 512, '
                    f'"filename": "{late}"}}}}]}},'
                    '{"subsystem": "vhost_blk", "config": [{"method": '
                    '"vhost_create_blk_controller", "params": {"ctrlr": "cl", '
                    '"dev_name": "late"}}]}]}')
        t.args = ['--state', t.path('state.json')]
        t.start()
        load = Load(self.connect(self.disk(t), mem_size=8 * MIB), 16)
        for _ in range(2):
            t = self.take_over(t, *t.args, loads=[load])
            self.assertEqual({p['name'] for p in t.rpc('config_get_pending')}, {'late', 'cl'})
        # It comes while it is handed over: whoever is left makes it.
        peer = Peer.successor(t)
        self.addCleanup(peer.close)
        peer.batch()
        with open(late, 'wb') as f:
            f.truncate(MIB)
        drive_for([load], 1.5)
        self.assertFalse(os.path.exists(t.path('cl')))
        peer.close()
        drive([load], lambda: os.path.exists(t.path('cl')), 20, 'the late controller')
        self.check_io(self.connect(t.path('cl'), mem_size=2 * MIB))
        t = self.take_over(t, *t.args, loads=[load])
        self.assertEqual(t.rpc('config_get_pending'), [])
        self.check_io(self.connect(t.path('cl'), mem_size=2 * MIB))
        self.check_load([load])

    def test_settings_survive(self):
        t = self.target()
        self.disk(t, readonly=False)
        t.rpc('vhost_controller_set_coalescing', ctrlr='c0', delay_base_us=10,
              iops_threshold=1000)
        self.disk(t, 'ro', 'm1', readonly=True)

        def shown():
            # Their order is no setting: malloc bdevs are made at the same time.
            return (sorted(t.rpc('vhost_get_controllers'), key=lambda c: c['ctrlr']),
                    sorted(t.rpc('bdev_get_bdevs'), key=lambda b: b['name']))
        before = shown()
        t = self.take_over(t)
        self.assertEqual(shown(), before)

    def test_write_cache_of_the_guest(self):
        t = self.target()
        fe = self.connect(self.file_disk(t), mem_size=2 * MIB)
        fe.set_config(32, b'\0')
        self.assertEqual(fe.get_config()[32], 0)
        t = self.take_over(t)
        self.assertEqual(fe.get_config()[32], 0)
        self.check_io(fe)

    def file_disk(self, t):
        return self.ctrlr(t, 'c0', self.file(t))


if __name__ == '__main__':
    spindle.run_tests()
