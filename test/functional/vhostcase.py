# SPDX-License-Identifier: BSD-3-Clause
"""What the vhost suites share: disks behind controllers, front ends that end with their test."""
import contextlib
import errno
import os
import pathlib
import select
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'lib'))
sys.path.insert(0, str(HERE))
import frontend as F  # noqa: E402
import spindle  # noqa: E402

MIB = 1 << 20
SLOW = spindle.SLOW
WAIT = 10.0 * SLOW      # for what should take no time at all; a busy disk flushes for seconds


def pattern(length, seed=1):
    """Bytes that differ in every sector and for every seed."""
    word = b''.join(((seed << 32) + i).to_bytes(8, 'little') * 8 for i in range(length // 64 + 1))
    return word[:length]


def fd_count(target):
    return len(os.listdir(f'/proc/{target.pid}/fd'))


def cpu_seconds(target):
    """User and system time of all its threads so far."""
    with open(f'/proc/{target.pid}/stat') as f:
        fields = f.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def memory_kib(target):
    """(resident without huge pages, huge pages) in KiB."""
    values = {}
    with open(f'/proc/{target.pid}/status') as f:
        for line in f:
            key, _, rest = line.partition(':')
            if rest.strip().endswith('kB'):
                values[key] = int(rest.split()[0])
    return values['VmRSS'], values.get('HugetlbPages', 0)


def free_huge_pages():
    with open('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages') as f:
        return int(f.read())


def need_huge_pages(count):
    if free_huge_pages() < count:
        raise spindle.unittest.SkipTest(f'needs {count} free 2 MiB huge pages')


def wait_called(q, count, timeout=WAIT):
    """`count` completions, woken by nothing but the call eventfd: a lost call is a failure."""
    poll = select.poll()
    poll.register(q.call_fd, select.POLLIN)
    done = []
    end = time.monotonic() + timeout
    while True:
        done += q.poll()
        if len(done) >= count:
            return done
        if q.ask_call():
            continue
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise AssertionError(f'no call within {timeout} s: {len(done)} of {count}, '
                                 f'used index {q.used_idx}, seen {q.last_used}')
        with contextlib.suppress(BlockingIOError):
            os.read(q.call_fd, 8)


class VhostCase(spindle.TestCase):
    def malloc(self, t, name='m0', mib=16, block_size=512):
        t.rpc('bdev_malloc_create', name=name, num_blocks=mib * MIB // block_size,
              block_size=block_size)
        return name

    def null(self, t, name='n0', mib=16, block_size=512):
        t.rpc('bdev_null_create', name=name, num_blocks=mib * MIB // block_size,
              block_size=block_size)
        return name

    def file(self, t, name='f0', mib=16, kind='uring', **params):
        """A file bdev; the file is t.path(name + '.img')."""
        path = t.path(name + '.img')
        if not os.path.exists(path):
            with open(path, 'wb') as f:
                f.truncate(mib * MIB)
        params.setdefault('block_size', 512)
        t.rpc(f'bdev_{kind}_create', name=name, filename=path, **params)
        return name

    def error(self, t, base):
        """An error bdev over base: EE_base."""
        t.rpc('bdev_error_create', base_name=base)
        return 'EE_' + base

    def inject(self, t, name, io_type, error_type, num=1):
        t.rpc('bdev_error_inject_error', name=name, io_type=io_type, error_type=error_type,
              num=num)

    def delay(self, t, base, us, name=None):
        name = name or 'D_' + base
        t.rpc('bdev_delay_create', base_bdev_name=base, name=name, avg_read_latency=us,
              p99_read_latency=us, avg_write_latency=us, p99_write_latency=us)
        return name

    def ctrlr(self, t, name, bdev, **params):
        """A controller; -> its socket."""
        t.rpc('vhost_create_blk_controller', ctrlr=name, dev_name=bdev, **params)
        return t.path(name)

    def disk(self, t, ctrlr='c0', bdev='m0', mib=16, block_size=512, **params):
        return self.ctrlr(t, ctrlr, self.malloc(t, bdev, mib, block_size), **params)

    def connect(self, path, **opts):
        opts.setdefault('timeout', WAIT)
        fe = F.Frontend.connect(path, **opts)
        self.addCleanup(fe.destroy)
        return fe

    def sessions(self, t, ctrlr='c0'):
        return t.rpc('vhost_get_controllers', name=ctrlr)[0]['sessions']

    def wait_sessions(self, t, count, ctrlr='c0'):
        return spindle.wait_until(lambda: len(self.sessions(t, ctrlr)) == count, 5,
                                  f'{count} sessions of {ctrlr}')

    def stats(self, t, bdev):
        return t.rpc('bdev_get_iostat', name=bdev)['bdevs'][0]

    def check_io(self, fe, q=0, sector=0, seed=1, length=4096):
        """Written data come back."""
        data = pattern(length, seed)
        fe.write(sector, data, q=q, timeout=WAIT)
        self.assertEqual(fe.read(sector, length, q=q, timeout=WAIT), data)

    def check_fails(self, status, call, *args, **kw):
        with self.assertRaises(F.BlkError) as caught:
            call(*args, **kw)
        self.assertEqual(caught.exception.status, status)

    def check_fds(self, t, count):
        """The target comes back to that many open fds."""
        spindle.wait_until(lambda: fd_count(t) == count, 3, f'{count} fds, not {fd_count(t)}')

    def check_closed(self, fe):
        self.assertTrue(fe.closed(WAIT), 'the connection is still open')

    def check_refused(self, call, *args):
        """The target says no to a message: by its ack or by closing the connection."""
        with self.assertRaises(OSError) as caught:
            call(*args)
        self.assertIn(caught.exception.errno, (errno.EREMOTEIO, errno.EPIPE))
