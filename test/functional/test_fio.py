#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""fio's engine (test/fio): fio itself, without a virtual machine, on the target's sockets and on
qemu-storage-daemon's."""
import json
import os
import signal
import subprocess
import unittest

from vhostcase import MIB, SLOW, VhostCase, spindle

VERIFY = ('--verify=crc32c', '--verify_fatal=1', '--do_verify=1')


def engine():
    """The engine, which is never a sanitized one."""
    build = spindle.BUILD.parent if spindle.SANITIZER else spindle.BUILD
    path = build / 'fio' / 'vhost_user_blk.so'
    if not path.exists():
        raise unittest.SkipTest(f'{path} is not built: "make fio" needs the source of fio')
    return f'external:{path}'


class FioCase(VhostCase):
    def command(self, path, *args, name='job'):
        return [spindle.need_tool('fio'), f'--name={name}', f'--ioengine={engine()}',
                f'--filename={path}', '--output-format=json', '--iodepth=32', *args]

    def start(self, path, *args):
        """fio in the background; killed when the test ends."""
        fio = subprocess.Popen(self.command(path, *args), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=self.temp_dir())
        self.addCleanup(self._end, fio)
        return fio

    @staticmethod
    def _end(fio):
        if fio.poll() is None:
            fio.kill()
        fio.wait()
        fio.stdout.close()
        fio.stderr.close()

    def finish(self, fio, timeout=30):
        """(exit status, jobs, all that was said)."""
        out, err = fio.communicate(timeout=timeout * SLOW)
        at = out.find('{\n')
        jobs = json.loads(out[at:out.rindex('}') + 1])['jobs'] if at >= 0 else []
        return fio.returncode, jobs, out[:max(at, 0)] + err

    def fio(self, path, *args):
        """Runs it to a good end; -> its jobs."""
        status, jobs, said = self.finish(self.start(path, *args))
        self.assertEqual(status, 0, said)
        for job in jobs:
            self.assertEqual(job['error'], 0, said)
        return jobs

    def fails(self, path, text, *args):
        status, _, said = self.finish(self.start(path, *args))
        self.assertNotEqual(status, 0)
        self.assertIn(text, said)

    def killed(self, path, kill, *args):
        """fio with requests that stay in flight, then no target."""
        fio = self.start(path, '--rw=randrw', '--bs=4k', '--time_based', '--runtime=100', *args)
        kill(fio)
        status, jobs, said = self.finish(fio)
        self.assertNotEqual(status, 0)
        self.assertIn('the target closed the connection', said)
        self.assertEqual({j['error'] for j in jobs}, {5}, said)


class Data(FioCase):
    def test_verify(self):
        t = self.target('0x1')
        path = self.disk(t, mib=16, packed_ring=True)
        for bs in ('4k', '128k'):
            for args in (('--wait=poll',), ('--wait=eventfd',), ('--packed=1', '--wait=poll'),
                         ('--packed=1', '--wait=eventfd')):
                with self.subTest(bs=bs, args=args):
                    job, = self.fio(path, '--rw=randwrite', f'--bs={bs}', *args, *VERIFY)
                    self.assertEqual(job['write']['io_bytes'], 16 * MIB)
                    self.assertEqual(job['read']['io_bytes'], 16 * MIB)

    def test_what_is_written_is_there(self):
        # Not only what fio itself reads back: both ends mean the same bytes.
        t = self.target('0x1')
        path = self.disk(t)
        self.fio(path, '--rw=write', '--bs=8k', '--size=1m', '--offset=1m',
                 '--buffer_pattern=0x1234abcd')
        fe = self.connect(path)
        self.assertEqual(fe.read(2048, 65536), bytes.fromhex('1234abcd') * 16384)
        self.assertEqual(fe.read(4096, 512), bytes(512))

    def test_rings(self):
        t = self.target('0x1')
        path = self.disk(t, packed_ring=True)
        for args in (('--iodepth=256', '--queue_size=256'),      # a request an entry: indirect
                     ('--iodepth=256', '--queue_size=256', '--packed=1'),
                     ('--iodepth=1024',), ('--iodepth=3', '--queue_size=16'),
                     ('--iodepth=64', '--indirect=1', '--memory=memfd'),
                     ('--iodepth_batch=16', '--iodepth_batch_complete_min=8', '--wait=eventfd'),
                     ('--queues=4',), ('--queues=3', '--packed=1', '--iodepth=100')):
            with self.subTest(args=args):
                self.fio(path, '--rw=randwrite', '--bs=4k', '--size=8m', *args, *VERIFY)

    def test_trim_and_flush(self):
        t = self.target('0x1')
        path = self.disk(t)
        self.fio(path, '--rw=write', '--bs=64k')
        before = self.stats(t, 'm0')
        for rw in ('trim', 'randtrim'):
            job, = self.fio(path, f'--rw={rw}', '--bs=64k', '--size=8m')
            self.assertEqual(job['trim']['total_ios'], 128)
        self.assertEqual(self.stats(t, 'm0')['bytes_unmapped'] - before['bytes_unmapped'],
                         16 * MIB)
        fe = self.connect(path)
        self.assertEqual(fe.read(0, 4096), bytes(4096))
        self.assertNotEqual(fe.read(8 * MIB // 512, 4096), bytes(4096))
        job, = self.fio(path, '--rw=randrw', '--bs=4k', '--size=1m', '--fsync=4')
        self.assertGreater(job['sync']['total_ios'], 10)
        self.fio(path, '--rw=trimwrite', '--bs=64k', '--size=8m', *VERIFY)

    def test_read_only_and_big_blocks(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'r0', self.malloc(t, block_size=4096), readonly=True)
        self.fio(path, '--rw=randread', '--bs=4k')
        self.fio(path, '--rw=read', '--bs=1m', '--iodepth=4')
        self.fails(path, 'read-only', '--rw=randwrite', '--bs=4k')
        self.fails(path, 'multiple of the disk\'s block size', '--rw=randread', '--bs=512')


class Jobs(FioCase):
    ARGS = ('--rw=randwrite', '--bs=4k', '--size=4m', '--offset_increment=4m', '--numjobs=4',
            *VERIFY)

    def test_several_jobs(self):
        t = self.target('0x3')
        path = self.disk(t)
        for args in ((), ('--thread',), ('--thread', '--queues=2'), ('--thread', '--shared=0')):
            with self.subTest(args=args):
                jobs = self.fio(path, *self.ARGS, *args)
                self.assertEqual([j['read']['io_bytes'] for j in jobs], [4 * MIB] * 4)

    def test_connections(self):
        t = self.target('0x1')
        path = self.disk(t)
        for args, queues in ((('--queues=2',), [2, 2, 2]), (('--thread', '--queues=2'), [6]),
                             (('--thread', '--shared=0'), [1, 1, 1])):
            with self.subTest(args=args):
                fio = self.start(path, '--rw=randread', '--numjobs=3', '--time_based',
                                 '--runtime=60', '--wait=eventfd', *args)
                spindle.wait_until(
                    lambda: [s['max_queues'] for s in self.sessions(t)] == queues, 10,
                    f'sessions with {queues} queues')
                fio.send_signal(signal.SIGINT)
                self.finish(fio)
                self.wait_sessions(t, 0)

    def test_phases(self):
        # Threads that run one after the other, and a process beside them.
        t = self.target('0x1')
        path = self.disk(t)
        tail = ('--rw=randwrite', '--bs=16k', '--size=4m', f'--filename={path}',
                f'--ioengine={engine()}')
        self.fio(path, '--rw=randread', '--size=4m', '--thread', '--numjobs=2',
                 '--name=two', '--thread', '--stonewall', '--iodepth=128', '--offset=4m', *tail,
                 *VERIFY, '--name=three', '--thread=0', '--stonewall', '--offset=8m', *tail,
                 *VERIFY, '--name=four', '--thread', '--offset=12m', *tail, *VERIFY)

    def test_two_disks(self):
        t = self.target('0x3')
        paths = [self.disk(t, 'c0', 'm0', packed_ring=True), self.ctrlr(t, 'c1', self.file(t))]
        for args in (('--packed=0',), ('--thread', '--numjobs=2', '--offset_increment=4m')):
            with self.subTest(args=args):
                self.fio(':'.join(paths), '--rw=randwrite', '--bs=4k', '--size=8m', *args,
                         *VERIFY)


class Scripts(FioCase):
    """The ready jobs of scripts/fio."""

    def run_job(self, job, path, *args, **env):
        run = subprocess.run([str(spindle.REPO / 'scripts' / 'fio' / 'run.sh'), job, path,
                              '--output-format=json', *args],
                             env={**os.environ, 'ENGINE': engine(), 'RUNTIME': '200ms', **env},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             cwd=self.temp_dir(), timeout=30 * SLOW, check=False)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        job, = json.loads(run.stdout[run.stdout.find('{\n'):])['jobs']
        return job

    def test_on_a_socket(self):
        t = self.target('0x1')
        path = self.disk(t, packed_ring=True)
        self.assertGreater(self.run_job('randread', path)['read']['total_ios'], 0)
        self.assertGreater(self.run_job('randwrite', path, 'fsync=32')['sync']['total_ios'], 0)
        mixed = self.run_job('mixed', path, 'queues=2', 'wait=eventfd', RW='50', JOBS='2')
        self.assertGreater(mixed['read']['total_ios'], 0)
        self.assertGreater(mixed['write']['total_ios'], 0)
        self.assertGreater(self.run_job('sequential', path)['read']['total_ios'], 0)
        latency = self.run_job('latency', path)['read']['lat_ns']['percentile']
        self.assertIn('99.999000', latency)
        verify = self.run_job('verify', path, 'packed=1', SIZE='8m', JOBS='2', BS='64k')
        self.assertEqual(verify['read']['io_bytes'], 16 * MIB)

    def test_on_a_file(self):
        # As on a disk in a guest: another engine, the same jobs.
        path = os.path.join(self.temp_dir(), 'disk')
        with open(path, 'wb') as f:
            f.truncate(16 * MIB)
        verify = self.run_job('verify', path, SIZE='4m', ENGINE='psync')
        self.assertEqual(verify['read']['io_bytes'], 4 * MIB)


class Failures(FioCase):
    def test_messages(self):
        t = self.target('0x1')
        path = self.disk(t)
        plain = t.path('plain')
        with open(plain, 'w'):
            pass
        read = ('--rw=randread', '--bs=4k')
        self.fails(t.path('none'), 'no such socket', *read)
        self.fails(plain, 'nobody listens', *read)
        self.fails(path, 'does not offer packed rings', '--packed=1', *read)
        self.fails(path, 'at most 1024 entries', '--iodepth=2000', *read)
        self.fails(path, 'does not fit a ring of queue_size=16', '--queue_size=16', *read)
        self.fails(path, 'is no power of two', '--queue_size=100', *read)
        self.fails(path, 'queues are needed', '--queues=256', '--thread', '--numjobs=2', *read)
        self.fails(path, 'conflicts with specified IO engine', '--mem=mmap', *read)
        self.fails(path, 'offloaded submit', '--io_submit_mode=offload', *read)
        self.check_io(self.connect(path))

    def test_target_dies(self):
        for args in (('--wait=poll',), ('--wait=eventfd', '--thread', '--numjobs=2'),
                     ('--wait=eventfd', '--packed=1', '--queues=2')):
            with self.subTest(args=args):
                t = self.target('0x1')
                path = self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 20000),
                                  packed_ring=True)

                def kill(fio):
                    spindle.wait_until(lambda: self.stats(t, 'm0')['num_read_ops'] > 100, 20,
                                       'I/O of fio')
                    t.kill()
                self.killed(path, kill, *args)

    def test_disk_fails(self):
        # Requests that fail do so in fio as well, and the connection lives on.
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.error(t, self.malloc(t)))
        self.inject(t, 'EE_m0', 'read', 'failure', num=3)
        status, (job,), said = self.finish(self.start(
            path, '--rw=randread', '--bs=4k', '--size=1m', '--continue_on_error=all'))
        self.assertEqual((status, job['total_err'], job['first_error']), (0, 3, 5), said)


class StorageDaemon(FioCase):
    """qemu-storage-daemon serves one connection at a time."""

    def setUp(self):
        binary = spindle.need_tool('qemu-storage-daemon')
        where = self.temp_dir()
        self.path = os.path.join(where, 'qsd.sock')
        self.image = os.path.join(where, 'qsd.img')
        with open(self.image, 'wb') as f:
            f.truncate(16 * MIB)
        with open(os.path.join(where, 'qsd.log'), 'wb') as log:
            self.qsd = subprocess.Popen(
                [binary, '--blockdev', f'driver=file,node-name=f,filename={self.image},discard=unmap',
                 '--export', 'vhost-user-blk,id=e,node-name=f,addr.type=unix,'
                 f'addr.path={self.path},writable=on,num-queues=4'],
                stdout=log, stderr=log)
        self.addCleanup(self.qsd.wait)
        self.addCleanup(self.qsd.kill)
        spindle.wait_until(lambda: os.path.exists(self.path), 10, 'its socket')

    def test_data(self):
        for args in (('--bs=4k',), ('--bs=128k', '--wait=eventfd'), ('--bs=4k', '--queues=4'),
                     ('--bs=16k', '--iodepth=256', '--queue_size=256')):
            with self.subTest(args=args):
                self.fio(self.path, '--rw=randwrite', '--size=8m', *args, *VERIFY)
        job, = self.fio(self.path, '--rw=trim', '--bs=64k', '--size=4m', '--fsync=8')
        self.assertEqual(job['trim']['total_ios'], 64)

    def test_jobs_share_the_connection(self):
        self.fio(self.path, '--thread', *Jobs.ARGS)
        self.fails(self.path, 'queues are needed', '--thread', '--numjobs=5', '--rw=randread')

    def test_dies(self):
        # I/O is under way when the image has got blocks.
        def kill(fio):
            spindle.wait_until(lambda: os.stat(self.image).st_blocks > 100, 20, 'I/O of fio')
            self.qsd.kill()
        self.killed(self.path, kill, '--wait=eventfd', '--thread', '--numjobs=2')


if __name__ == '__main__':
    spindle.run_tests()
