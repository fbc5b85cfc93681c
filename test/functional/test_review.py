#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a hostile review found: fds that block whoever writes or closes them, a ring that two
sessions write, a delete pipelined behind a slow call, long trims, write-through that a reconnect
forgets, a bdev born during shutdown. One test for each."""
import contextlib
import fcntl
import os
import signal
import socket
import struct
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, fd_count, spindle

WCE = 32        # offset of the writeback byte in the config
GIB = 1 << 30


def full_eventfd():
    """One whose next write blocks: its counter is as high as it goes."""
    fd = os.eventfd(0)
    os.write(fd, struct.pack('<Q', 0xfffffffffffffffe))
    return fd


def trims(fe, count, length):
    """`count` trims of the disk's first `length` bytes, all at once; not waited for."""
    gpa = fe.alloc(16)
    fe.mem_write(gpa, F.pack_range(0, length // 512))
    for _ in range(count):
        fe.q[0].submit(F.T_DISCARD, 0, [(gpa, 16)], how=F.HOW_NO_PUBLISH)
    fe.q[0].publish()
    fe.q[0].kick()


class ReviewCase(VhostCase):
    def check_rpc(self, t, seconds=1.0):
        """RPC answers on a new connection, and soon."""
        with t.raw() as client:
            client.call('spdk_get_version', timeout=seconds)


class Fds(ReviewCase):
    def test_error_fd_that_blocks(self):
        # The error event of a ring that cannot run: not written by the control thread.
        t = self.target()
        other = self.connect(self.disk(t, 'c1', 'm1'))
        path = self.disk(t)
        read_end, write_end = os.pipe()
        self.addCleanup(os.close, read_end)
        os.set_blocking(write_end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, bytes(65536))
        os.set_blocking(write_end, True)
        for i, fd in enumerate((full_eventfd(), write_end)):
            self.addCleanup(os.close, fd)
            self.assertTrue(os.get_blocking(fd))
            fe = self.connect(path, queues=2)
            fe.q[0].stop()
            fe.set_vring_fd(F.SET_VRING_ERR, 0, fd)
            fe.set_vring_addr(0, 1 << 40, fe.uva(fe.q[0].used_gpa), fe.uva(fe.q[0].avail_gpa))
            fe.set_vring_fd(F.SET_VRING_KICK, 0, fe.q[0].kick_fd)
            spindle.wait_until(lambda: t.log().count('lie outside the memory') > i, 5,
                               'the ring is refused')
            self.check_rpc(t)
            self.check_io(other, seed=i)
            self.check_io(fe, q=1, seed=i)
            self.connect(t.path('c1')).destroy()
            fe.destroy()
        self.wait_sessions(t, 0)

    def lingering_socket(self):
        """A TCP socket whose close waits for an hour, and the other end, which reads nothing."""
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            listener.listen(1)
            sock = socket.create_connection(listener.getsockname())
            self.addCleanup(sock.close)
            peer, _ = listener.accept()
            # With unread data this end's close resets the other: nothing waits any longer.
            self.addCleanup(peer.close)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(65536))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3600))
        return sock

    def test_fd_whose_close_blocks(self):
        # Closing the last reference of a stranger's fd may sleep: with a refused message, and
        # with a session that kept it.
        t = self.target()
        other = self.connect(self.disk(t, 'c1', 'm1'))
        path = self.disk(t)
        fds = fd_count(t)
        fe = self.connect(path, no_start=True)
        sock = self.lingering_socket()
        # The payload comes when the fd is the target's alone.
        fe.send_bytes(struct.pack('<III', F.SET_FEATURES, F.VERSION, 8), [sock.fileno()])
        sock.close()
        fe.send_bytes(bytes(8))
        self.check_rpc(t)
        self.check_io(other)
        fe.destroy()
        for _ in range(2):
            fe = self.connect(path, style='qemu11')
            sock = self.lingering_socket()
            fe.set_vring_fd(F.SET_VRING_CALL, 0, sock.fileno())
            sock.close()
            fe.destroy()
            self.check_rpc(t)
            self.check_io(other)
        self.wait_sessions(t, 0)
        self.check_fds(t, fds)

    def test_regular_files_are_refused(self):
        # What a file system answers for may take its time, which reactors have not.
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, style='qemu11')
        with open(t.path('file'), 'w+b') as file:
            for request in (F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR):
                with self.subTest(request=request):
                    self.check_refused(fe.set_vring_fd, request, 0, file.fileno())
                    # The refusal is answered first, then the session ends.
                    self.assertTrue(fe.closed(WAIT))
                    fe = self.connect(t.path('c0'), queues=2, style='qemu11')
                    self.check_io(fe, q=1)
        self.check_io(self.connect(t.path('c0')))


class Reconnect(ReviewCase):
    def slow_reads(self, t):
        """A disk whose reads take a second and whose writes take no time."""
        t.rpc('bdev_delay_create', base_bdev_name=self.malloc(t), name='D_m0',
              avg_read_latency=1000000, p99_read_latency=1000000, avg_write_latency=0,
              p99_write_latency=0)
        return self.ctrlr(t, 'c0', 'D_m0')

    def two_sessions(self, delete):
        """A read of the old session is in flight when the new one takes over the ring."""
        t = self.target()
        fe = self.connect(self.slow_reads(t))
        q = fe.q[0]
        gpa = fe.alloc(4 * 512, 512)
        head = q.submit(F.T_IN, 0, [(gpa, 512)], cookie=0)
        q.kick()
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 1, 2, 'in flight')
        time.sleep(0.1)
        if delete:
            t.rpc('vhost_delete_controller', ctrlr='c0')
            self.check_closed(fe)
            self.ctrlr(t, 'c0', 'D_m0')
        began = time.monotonic()
        fe.reconnect()          # from the used index on: the read is begun once more
        heads = [head] + [q.submit(F.T_OUT, 8 * i, [(gpa + 512 * i, 512)], cookie=i)
                          for i in (1, 2, 3)]
        q.kick()
        status = q.scratch_gpa + 64 * head + 16
        last, early = 0, True
        while last < 4 and time.monotonic() - began < 1 + WAIT:
            # The clock after the look: what was seen had happened by then.
            used, seen = q.used_idx, fe.mem_read(status, 1)
            ids = [q.used_elem(i)[0] for i in range(used)]
            early = time.monotonic() - began < 0.99
            self.assertGreaterEqual(used, last, 'the used index went back')
            last = used
            self.assertEqual(len(set(ids)), used, f'told twice: {ids}')
            if early:
                self.assertNotIn(head, ids, 'an entry of the session that has gone')
                self.assertEqual(seen, b'\xff', 'a status of the session that has gone')
            time.sleep(0.001)
        self.assertEqual(ids, heads[1:] + heads[:1])
        time.sleep(0.1)
        self.assertEqual(q.used_idx, 4)
        self.assertEqual([d.status for d in q.wait_all(4, WAIT)], [F.S_OK] * 4)
        self.assertEqual(q.stop(), 4)

    def test_old_session_is_mute_after_close(self):
        self.two_sessions(False)

    def test_old_session_is_mute_after_delete(self):
        self.two_sessions(True)

    def test_writeback_outlives_the_connection(self):
        # QEMU does not repeat SET_CONFIG: a write-through guest must not become volatile.
        t = self.target()
        path = self.ctrlr(t, 'c0', self.file(t, kind='aio'))
        fe = self.connect(path)
        self.assertEqual(fe.get_config(WCE, 1), b'\1')
        fe.set_config(WCE, b'\0')
        self.assertEqual(fe.get_config(WCE, 1), b'\0')
        fe.reconnect()
        self.assertEqual(fe.get_config(WCE, 1), b'\0')
        self.check_io(fe)
        fe.set_config(WCE, b'\1')
        fe.reconnect()
        self.assertEqual(fe.get_config(WCE, 1), b'\1')


class Pipelined(ReviewCase):
    def batch(self, t, *calls):
        """-> the results, in order."""
        with t.raw(5) as client:
            client.send([{'jsonrpc': '2.0', 'id': i, 'method': method, 'params': params}
                         for i, (method, params) in enumerate(calls)])
            answers = sorted(client.recv(), key=lambda a: a['id'])
        self.assertTrue(t.running())
        return [a.get('result', a.get('error')) for a in answers]

    def test_rescan_and_delete(self):
        # The answer to the one runs the other: nothing may be used after it.
        t = self.target()
        for _ in range(5):
            for kind in ('aio', 'uring'):
                self.file(t, 'f0', kind=kind)
                self.assertEqual(self.batch(t, (f'bdev_{kind}_rescan', {'name': 'f0'}),
                                            (f'bdev_{kind}_delete', {'name': 'f0'})),
                                 [True, True])
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])

    def test_clear_and_delete(self):
        t = self.target()
        self.null(t)
        clear = {'name': 'EE_n0', 'io_type': 'clear', 'error_type': 'clear'}
        for _ in range(5):
            self.error(t, 'n0')
            self.assertEqual(self.batch(t, ('bdev_error_inject_error', clear),
                                        ('bdev_error_delete', {'name': 'EE_n0'})),
                             [True, True])
        self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs')], ['n0'])


class Trims(ReviewCase):
    def test_long_trims_share_the_core(self):
        t = self.target('0x1', '--no-huge')
        # Instrumented, clearing memory takes several times as long.
        count = 4 if spindle.SANITIZER else 16
        path = self.disk(t, 'c0', 'm0', mib=512)
        fe = self.connect(path)
        other = self.connect(self.disk(t, 'c1', 'm1'))
        self.check_io(other)
        trims(fe, count, GIB // 2)
        reads, worst = 0, 0
        while fe.q[0].used_idx < count:
            began = time.monotonic()
            other.read(0, 512, timeout=WAIT)
            worst = max(worst, time.monotonic() - began)
            reads += fe.q[0].used_idx < count
        print(f'     {reads} reads beside {count} trims, the slowest {worst * 1e3:.1f} ms')
        self.assertLess(worst, 0.2 * SLOW)
        self.assertGreaterEqual(reads, 3)
        self.assertEqual({d.status for d in fe.q[0].wait_all(count, WAIT)}, {F.S_OK})


class Shutdown(ReviewCase):
    def leased(self, t, name):
        """A file that nobody can open until its lease is given back: the fd that holds it."""
        fd = os.open(t.path(name), os.O_RDWR | os.O_CREAT, 0o600)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, MIB)
        self.addCleanup(signal.signal, signal.SIGIO, signal.signal(signal.SIGIO, signal.SIG_IGN))
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as err:
            self.skipTest(f'no leases on {t.dir}: {err.strerror}')
        return fd

    def create_during_shutdown(self):
        """SIGTERM while a worker opens the file; another bdev's trims keep the shutdown busy."""
        t = self.target()
        fe = self.connect(self.disk(t, mib=16), queue_size=512)
        count = 2
        began = time.monotonic()
        trims(fe, count, 16 * MIB)
        fe.q[0].wait_all(count, WAIT)
        # About a quarter of a second's work: there are two seconds for all of it.
        count = max(1, min(100, int(0.25 * count / (time.monotonic() - began))))
        lease = self.leased(t, 'late')
        with t.raw() as client:
            client.send({'jsonrpc': '2.0', 'id': 1, 'method': 'bdev_aio_create', 'params': {
                'name': 'late', 'filename': t.path('late'), 'block_size': 512}})
            spindle.wait_until(lambda: fcntl.fcntl(lease, fcntl.F_GETLEASE) != fcntl.F_WRLCK, 5,
                               'the target opens the file', 0.002)
            trims(fe, count, 16 * MIB)
            t.send_signal(signal.SIGTERM)
            t.wait_log('shutting down')
            time.sleep(0.005)
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            self.assertEqual(t.wait(), 0, t.log_tail())

    def test_bdev_created_too_late(self):
        # All bdevs are being deleted: one that is registered now would never be.
        for _ in range(4):
            self.create_during_shutdown()


if __name__ == '__main__':
    spindle.run_tests()
