# SPDX-License-Identifier: BSD-3-Clause
"""What the suites of upgrade in place share: successors, real and pretended."""
import array
import os
import socket
import struct
import time

from load import Load, drive, drive_for
from vhostcase import F, MIB, VhostCase, spindle
from takeover import GIVEN, KEPT, TAKEN, Refused, outcome, with_logs

# More than by default: a disk that others use as well may take its time.
STOP_MS = int(os.environ.get('STOP_MS', '5000')) * spindle.SLOW
# How often in a row a takeover may be refused for a slow disk.
REFUSALS = 5

# Records as in rpc/takeover.h and vhost/handover.h.
MAGIC = 0x53504454
HEADER = struct.Struct('<IHHI')
(CONTROLLER, SESSION, REGION, VQ, POSITION, ALIVE, HELLO, CONFIG, BDEV, RPC, END, PREPARED,
 STARTED, FAILED) = range(1, 15)


class Peer:
    """One end of a takeover's connection, for records by hand."""

    def __init__(self, sock, timeout=20 * spindle.SLOW):
        self.sock = sock
        self.sock.settimeout(timeout)

    @classmethod
    def successor(cls, t, version=1, stop_ms=STOP_MS):
        """Asks a target for all it has, as a successor does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(t.sock)
        sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "framework_takeover", '
                     b'"params": {"version": %d, "stop_ms": %d}}' % (version, stop_ms))
        return cls(sock)

    def close(self):
        self.sock.close()

    def send(self, kind, body=b'', fds=()):
        data = HEADER.pack(MAGIC, kind, len(fds), len(body)) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def _exactly(self, count):
        data = b''
        while len(data) < count:
            piece, fds, _, _ = socket.recv_fds(self.sock, count - len(data), 16)
            for fd in fds:
                os.close(fd)
            if not piece:
                raise EOFError('the predecessor has closed the connection')
            data += piece
        return data

    def recv(self):
        """-> (type, body); file descriptors are closed."""
        magic, kind, _, length = HEADER.unpack(self._exactly(HEADER.size))
        if magic != MAGIC:
            raise AssertionError(f'no record: {magic:#x}')
        return kind, self._exactly(length)

    def batch(self):
        """All records up to END; AssertionError with the text of FAILED."""
        records = []
        while True:
            kind, body = self.recv()
            if kind == FAILED:
                raise AssertionError('the predecessor says: ' + body.decode())
            if kind == END:
                return records
            records.append((kind, body))


class TakeoverCase(VhostCase):
    timeout = 120

    def successor(self, t, *args, mask=None, **kwargs):
        """Starts a target that shall take over from t, in the same place; does not wait."""
        kwargs.setdefault('sock', t.sock)
        kwargs.setdefault('directory', t.dir)
        kwargs.setdefault('locks', t.locks)
        s = spindle.Target(mask or t.mask, f'--takeover={STOP_MS}', *args, **kwargs)
        self.addCleanup(self._end_target, s)
        return s.spawn()

    def wait_over(self, t, s, loads=()):
        """Until s has taken over from t, which then has gone with status 0; or Refused."""
        if t.client:
            t.client.close()
            t.client = None
        with with_logs(t, s):
            drive(loads, lambda: outcome(t, s), 20, 'a takeover')
            drive(loads, lambda: not t.running(), 10, 'the end of the predecessor')
            self.assertEqual(t.wait(), 0)
            self.assertIn(GIVEN, t.log())

    def take_over(self, t, *args, loads=(), **kwargs):
        """-> the successor. A disk that is slow for a while must not have harmed anybody, and
        is tried again."""
        for left in reversed(range(REFUSALS)):
            s = self.successor(t, *args, **kwargs)
            try:
                self.wait_over(t, s, loads)
                return s
            except Refused as why:
                if not left:
                    raise
                print(f'     refused, the predecessor has gone on: {why}')
                before = [load.done for load in loads]
                drive(loads, lambda before=before: all(
                    load.done > done for load, done in zip(loads, before)), 20, 'going on')

    def wait_kept(self, t, loads=(), count=1, timeout=10):
        """Until t has given up for the count-th time; then all must be as it was."""
        drive(loads, lambda: t.log().count(KEPT) >= count, timeout, 'the end of a takeover')

    def files(self, t, *names):
        """What stands at the sockets' paths."""
        return [(st.st_dev, st.st_ino) for st in
                (os.stat(p) for p in (t.sock, t.sock + '.lock', *map(t.path, names)))]

    def check_serves(self, t, *names):
        """RPC works, also what changes something, and so do new front ends."""
        t.rpc('bdev_null_create', name='probe', num_blocks=2048, block_size=512)
        t.rpc('vhost_create_blk_controller', ctrlr='probe', dev_name='probe')
        for name in ('probe', *names):
            fe = self.connect(t.path(name), mem_size=2 * MIB)
            fe.read(0, 4096, timeout=20 * spindle.SLOW)
            fe.destroy()
        t.rpc('vhost_delete_controller', ctrlr='probe')
        t.rpc('bdev_null_delete', name='probe')

    def check_load(self, loads):
        """No request lost, none completed twice, all data right, the connection as it was."""
        drive_for(loads, 0.05)
        for load in loads:
            load.drain()
            load.check_disk()
            load.fe.flush(timeout=20 * spindle.SLOW)
            self.assertTrue(load.fe.quiet(0), 'a message nobody asked for')


class Pauses:
    """The longest time without a completion in each of several takeovers."""

    def __init__(self, loads):
        self.loads, self.seen = loads, []

    def __enter__(self):
        for load in self.loads:
            load.forget_gap()

    def __exit__(self, *exc):
        self.seen.append(max(load.gap for load in self.loads))

    def __str__(self):
        seen = sorted(self.seen)
        return (f'pause: median {seen[len(seen) // 2] * 1e3:.1f} ms, '
                f'longest {seen[-1] * 1e3:.1f} ms')


def told_us(t):
    """For how many microseconds nobody served the guests, by the predecessor's log."""
    return int(t.log().partition(GIVEN + ' after ')[2].split()[0])
