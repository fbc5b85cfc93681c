#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest on the real target: what the operator's users will see.

Each class boots one guest (under TCG, so no KVM is needed) and makes many checks in it;
tests of a class do not depend on each other's order. Without a guest (no QEMU, no network to
fetch a kernel with) everything is skipped, with the reason.
"""
import contextlib
import hashlib
import os
import pathlib
import re
import sys
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'lib')]

import spindle                                              # noqa: E402
from guest import Disk, Guest, Unavailable, free_hugepages, hugetlbfs     # noqa: E402

MIB = 1 << 20
SLOW = spindle.SLOW
FIO = ('fio --name=v --filename={dev} --rw=randrw --bsrange={bs} --size={size}m --direct=1 '
       '--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog=256 '
       '--randrepeat=0 --minimal {more}')
# Runs until the end of time; for things that happen under I/O.
FIO_LOOP = ('fio --name=l --filename={dev} --rw=randrw --bs=16k --size=32m --direct=1 '
            '--ioengine=libaio --iodepth=8 --time_based --runtime={seconds} --minimal')


def fio_verify(dev, size, bs='4k-256k', more=''):
    return FIO.format(dev=dev, size=size, bs=bs, more=more)


def allocated(path):
    """MiB the file really occupies."""
    return os.stat(path).st_blocks * 512 // MIB


def sparse(path, size):
    with open(path, 'wb') as f:
        f.truncate(size)


def file_sum(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


class GuestTest(spindle.TestCase):
    """One target and one guest per class: subclasses fill in prepare()."""

    timeout = 300
    mask = '0x1'
    smp = 2
    size = 512
    memory = 'memfd'
    target_args = ()

    @classmethod
    def setUpClass(cls):
        cls.undo = contextlib.ExitStack()
        try:
            spindle.need_root()
            cls.t = spindle.Target(cls.mask, *cls.memory_flags())
            cls.undo.callback(cls.t.cleanup)
            cls.t.start()
            disks = cls.prepare()
            cls.guest = Guest(disks, memory=cls.memory, size=cls.size, smp=cls.smp)
            cls.guest.watch = cls.target_lives
            cls.undo.callback(cls.guest.close)
            cls.guest.boot(timeout=90 * SLOW)
        except Unavailable as reason:
            cls.undo.close()
            raise unittest.SkipTest(str(reason))
        except BaseException:
            cls.undo.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.guest.close()
        if cls.t.running():
            cls.t.stop()
        cls.undo.close()

    @classmethod
    def target_lives(cls):
        """Without a target the guest would be waited for until the time is up."""
        if not cls.t.running():
            raise AssertionError('the target died')

    @classmethod
    def memory_flags(cls):
        """A machine without huge pages can still run all this but the hugepage test."""
        cls.no_huge = None
        try:
            hugetlbfs()
            if free_hugepages() * 2 < cls.size + 160:
                cls.no_huge = f'{free_hugepages() * 2} MiB in free huge pages'
        except Unavailable as reason:
            cls.no_huge = str(reason)
        if cls.no_huge:
            if cls.memory == 'hugepages':
                cls.memory = 'memfd'
            return ('--no-huge', *cls.target_args)
        return cls.target_args

    @classmethod
    def uring(cls, name, mib, block_size=512, **ctrlr):
        """A file disk and its controller, both of that name; the Disk takes its socket."""
        path = cls.t.path(name + '.img')
        sparse(path, mib * MIB)
        cls.t.rpc('bdev_uring_create', filename=path, name=name, block_size=block_size)
        cls.t.rpc('vhost_create_blk_controller', ctrlr='v.' + name, dev_name=name, **ctrlr)
        return cls.t.path('v.' + name)

    @classmethod
    def malloc(cls, name, mib, block_size=512, **ctrlr):
        cls.t.rpc('bdev_malloc_create', num_blocks=mib * MIB // block_size,
                  block_size=block_size, name=name)
        cls.t.rpc('vhost_create_blk_controller', ctrlr='v.' + name, dev_name=name, **ctrlr)
        return cls.t.path('v.' + name)

    def setUp(self):
        self.assertTrue(self.guest.alive(), 'QEMU died in an earlier test')
        self.assertTrue(self.t.running(), 'the target died in an earlier test')

    def sh(self, script, timeout=60):
        """Output of a script that must succeed in the guest."""
        return self.guest.check(script, timeout * SLOW)

    def fails(self, script, timeout=60):
        """Output of a script that must not succeed, and must end."""
        status, out = self.guest.run(script, timeout * SLOW)
        self.assertNotEqual(status, 0, f'{script}\nsucceeded:\n{out}')
        return out

    def value(self, dev, name):
        return self.sh(f'cat /sys/block/{dev}/{name}')


class Polled(GuestTest):
    """Two polling reactors, hugepage memory; vda has four queues, vdb (malloc) one."""

    mask = '0x3'
    smp = 4
    memory = 'hugepages'

    @classmethod
    def setUpClass(cls):
        spindle.need_cores(2)
        super().setUpClass()

    @classmethod
    def prepare(cls):
        return [Disk(cls.uring('f0', 512), queues=4), Disk(cls.malloc('m0', 64), queues=1)]

    def busy(self):
        return [r['busy'] for r in self.t.rpc('framework_get_reactors')['reactors']]

    def test_hugepage_memory(self):
        if self.no_huge:
            self.skipTest(self.no_huge)
        self.sh(fio_verify('/dev/vda', 16))
        with open(f'/proc/{self.t.pid}/smaps') as f:
            mapped = re.findall(r'qemu_back_mem.*\nSize: +(\d+) kB\nKernelPageSize: +(\d+) kB',
                                f.read())
        self.assertEqual({int(page) for _, page in mapped}, {2048})
        self.assertGreaterEqual(sum(int(size) for size, _ in mapped), self.size * 1024)

    def test_queues(self):
        self.assertEqual(self.sh('ls /sys/block/vda/mq | wc -l'), '4')
        self.assertEqual(self.sh('ls /sys/block/vdb/mq | wc -l'), '1')
        for name in ('f0', 'm0'):
            ctrlr, = self.t.rpc('vhost_get_controllers', name='v.' + name)
            session, = ctrlr['sessions']
            self.assertTrue(session['started'])

    def test_four_queues_on_both_reactors(self):
        """256 MiB verified; each vCPU has a queue, and the queues are spread."""
        before = self.busy()
        time.sleep(1)
        quiet = [b - a for a, b in zip(before, self.busy())]
        before = self.busy()
        began = time.monotonic()
        self.sh(fio_verify('/dev/vda', 64, more='--numjobs=4 --offset_increment=64m '
                           '--cpus_allowed=0-3 --cpus_allowed_policy=split'), 120)
        took = time.monotonic() - began
        used = [b - a for a, b in zip(before, self.busy())]
        self.assertEqual(len(used), 2)
        for lcore, ticks in enumerate(used):
            self.assertGreater(ticks, 2 * quiet[lcore] * took,
                               f'reactor {lcore}: busy {ticks} ticks under I/O')
        # Neither does all the work.
        self.assertGreater(min(used), sum(used) / 10, f'busy ticks {used}')

    def test_two_disks_at_once(self):
        first = self.guest.start(fio_verify('/dev/vda', 48, more='--offset=256m'))
        second = self.guest.start(fio_verify('/dev/vdb', 48))
        self.guest.check_wait(first, 90 * SLOW)
        self.guest.check_wait(second, 90 * SLOW)

    def test_stop_and_cont_under_io(self):
        ticket = self.guest.start(fio_verify('/dev/vda', 64, more='--offset=384m') + ' && '
                                  + fio_verify('/dev/vdb', 32))
        for _ in range(4):
            time.sleep(0.4)
            self.guest.qmp('stop')
            session, = self.t.rpc('vhost_get_controllers', name='v.f0')[0]['sessions']
            self.assertEqual(session['inflight_task_cnt'], 0, 'a stopped guest has I/O in flight')
            time.sleep(0.1)
            self.guest.qmp('cont')
        self.guest.check_wait(ticket, 200 * SLOW)


class Disks(GuestTest):
    """One reactor, memfd memory, one queue a disk; disks of every kind, and file systems."""

    # Sleeps when idle: leaves the machine's other core and a half to the emulated guest.
    target_args = ('--poll-us', '200')

    @classmethod
    def prepare(cls):
        disks = [cls.uring('plain', 512), cls.malloc('mem', 32)]
        path = cls.t.path('ro.img')
        with open(path, 'wb') as f:
            f.write(os.urandom(8 * MIB))
        cls.t.rpc('bdev_uring_create', filename=path, name='ro', block_size=512)
        cls.t.rpc('vhost_create_blk_controller', ctrlr='v.ro', dev_name='ro', readonly=True)
        disks += [cls.t.path('v.ro'), cls.uring('k4', 64, 4096), cls.uring('grows', 16)]
        return [Disk(path) for path in disks]

    def test_sizes_and_names(self):
        out = self.sh('lsblk -bdno NAME,SIZE /dev/vd?').split()
        sizes = dict(zip(out[::2], (int(n) // MIB for n in out[1::2])))
        self.assertEqual([sizes[d] for d in ('vda', 'vdb', 'vdc', 'vdd')], [512, 32, 8, 64])
        for dev, name in (('vda', 'plain'), ('vdb', 'mem'), ('vdd', 'k4')):
            self.assertEqual(self.value(dev, 'serial'), name)

    def test_one_queue(self):
        self.assertEqual(self.sh('ls /sys/block/vda/mq | wc -l'), '1')
        self.sh(fio_verify('/dev/vda', 64))
        self.sh(fio_verify('/dev/vda', 8, bs='512-8k'))

    def test_malloc(self):
        self.sh(fio_verify('/dev/vdb', 32))
        self.sh('dd if=/dev/urandom of=/tmp/r bs=1M count=4 2>/dev/null && '
                'dd if=/tmp/r of=/dev/vdb bs=1M oflag=direct && '
                'dd if=/dev/vdb of=/tmp/s bs=1M count=4 iflag=direct && cmp /tmp/r /tmp/s')

    def test_ready_jobs(self):
        """scripts/fio, copied into the guest."""
        jobs = spindle.REPO / 'scripts' / 'fio'
        copy = ''.join(f"cat > /tmp/fio/{p.name} <<'END_OF_FILE'\n{p.read_text()}END_OF_FILE\n"
                       for p in jobs.iterdir())
        self.sh('mkdir -p /tmp/fio\n' + copy + 'chmod +x /tmp/fio/run.sh')
        self.sh('cd /tmp/fio && SIZE=8m JOBS=2 ./run.sh verify /dev/vda --minimal')
        for job in ('randread', 'randwrite', 'mixed', 'sequential', 'latency'):
            out = self.sh(f'cd /tmp/fio && RUNTIME=300ms ./run.sh {job} /dev/vda --minimal')
            self.assertIn(f';{job};', out)

    def test_other_engines(self):
        """io_uring, large buffers in many segments, and through the page cache."""
        self.sh(fio_verify('/dev/vda', 32, bs='64k-1m').replace('libaio', 'io_uring'))
        self.sh(fio_verify('/dev/vda', 16, bs='4k-64k', more='--direct=0 --fsync=32')
                .replace('libaio', 'psync'))

    def file_system(self, mkfs, check):
        """mkfs, write, fsync, unmount, check, mount again, compare with the checksum."""
        out = self.sh(f'''set -e
            {mkfs} /dev/vda; mount /dev/vda /mnt
            mkdir /mnt/d; dd if=/dev/urandom of=/mnt/d/x bs=1M count=24 conv=fsync 2>/dev/null
            for i in $(seq 100); do echo $i >/mnt/d/f$i; done
            rm /mnt/d/f5*; sync
            sha256sum </mnt/d/x >/tmp/before; umount /mnt
            {check} /dev/vda >/tmp/check 2>&1 || {{ cat /tmp/check; exit 1; }}
            blockdev --flushbufs /dev/vda; mount /dev/vda /mnt
            sha256sum </mnt/d/x >/tmp/after; ls /mnt/d | wc -l; umount /mnt
            cmp /tmp/before /tmp/after''')
        self.assertEqual(out.split()[-1], '90')

    def test_ext4(self):
        self.file_system('mkfs.ext4 -q -F', 'e2fsck -fn')

    def test_xfs(self):
        self.file_system('mkfs.xfs -q -f', 'xfs_repair -n')

    def test_discard_frees_blocks(self):
        """fstrim and blkdiscard in the guest shrink the file on the host."""
        path = self.t.path('plain.img')
        self.assertNotEqual(self.value('vda', 'queue/discard_max_bytes'), '0')
        self.sh('blkdiscard /dev/vda')
        self.assertLessEqual(allocated(path), 1)
        self.sh('''set -e; mkfs.ext4 -q -F -E nodiscard /dev/vda; mount /dev/vda /mnt
            dd if=/dev/urandom of=/mnt/x bs=1M count=48 conv=fsync 2>/dev/null''')
        full = allocated(path)
        self.assertGreaterEqual(full, 48)
        self.sh('rm /mnt/x; sync; fstrim /mnt; umount /mnt')
        trimmed = allocated(path)
        self.assertLessEqual(trimmed, full - 44, 'fstrim freed nothing in the file')
        self.sh('e2fsck -fn /dev/vda')
        self.sh('blkdiscard /dev/vda')
        self.assertLessEqual(allocated(path), 1, 'blkdiscard freed nothing in the file')

    def test_write_zeroes(self):
        self.assertNotEqual(self.value('vda', 'queue/write_zeroes_max_bytes'), '0')
        self.sh('''set -e
            dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null
            blkdiscard -z -o 1M -l 4M /dev/vda
            dd if=/dev/vda bs=1M skip=1 count=4 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c \\
                | grep -qx 0
            test $(dd if=/dev/vda bs=1M skip=5 count=1 iflag=direct 2>/dev/null \\
                | tr -d '\\0' | wc -c) -gt 1000000''')

    def test_read_only(self):
        before = file_sum(self.t.path('ro.img'))
        self.assertEqual(self.value('vdc', 'ro'), '1')
        self.sh('dd if=/dev/vdc of=/dev/null bs=64k iflag=direct')
        self.fails('mkfs.ext4 -q -F /dev/vdc')
        self.fails('dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct')
        self.fails('blkdiscard /dev/vdc')
        # The guest's kernel refuses by itself; make it try, the target must refuse too.
        status, _ = self.guest.run('blockdev --setrw /dev/vdc && '
                                   'dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct')
        self.assertNotEqual(status, 0)
        self.assertEqual(file_sum(self.t.path('ro.img')), before)
        self.assertEqual(self.sh('sha256sum </dev/vdc').split()[0], before)

    def test_block_size_4096(self):
        self.assertEqual(self.value('vdd', 'queue/logical_block_size'), '4096')
        self.assertEqual(self.value('vda', 'queue/logical_block_size'), '512')
        # Not dd: busybox's goes on without O_DIRECT.
        self.fails(fio_verify('/dev/vdd', 1, bs='512-512'))
        self.sh(fio_verify('/dev/vdd', 32, bs='4k-128k'))
        self.sh('mkfs.ext4 -q -F /dev/vdd && e2fsck -fn /dev/vdd')

    def test_resize(self):
        """The file grows under the guest, which sees it without a reboot."""
        path = self.t.path('grows.img')
        old = os.path.getsize(path)
        self.assertEqual(int(self.sh('blockdev --getsize64 /dev/vde')), old)
        self.fails(f'dd if=/dev/zero of=/dev/vde bs=1M seek={old // MIB} count=1 oflag=direct')
        with open(path, 'r+b') as f:
            f.truncate(old + 24 * MIB)
        self.t.rpc('bdev_uring_rescan', name='grows')
        spindle.wait_until(
            lambda: int(self.sh('blockdev --getsize64 /dev/vde')) == old + 24 * MIB, 10,
            'the new size in the guest', interval=0.3)
        self.sh(fio_verify('/dev/vde', 24, more=f'--offset={old}'))

    def test_write_cache(self):
        """The guest turns the cache off and on: SET_CONFIG, then writes that are durable."""
        cache = '/sys/block/vda/cache_type'
        self.assertEqual(self.sh(f'cat {cache}'), 'write back')
        for mode in ('write through', 'write back'):
            self.sh(f"echo '{mode}' >{cache}")
            self.assertEqual(self.sh(f'cat {cache}'), mode)
            self.assertEqual(self.value('vda', 'queue/write_cache'), mode)
            self.sh(fio_verify('/dev/vda', 2, bs='4k-16k', more='--fsync=16'))


class Properties(GuestTest):
    """What an operator may set on QEMU's device, a disk each."""

    target_args = ('--poll-us', '200')
    variants = ({'disable-modern': 'on', 'disable-legacy': 'off'},
                {'indirect_desc': 'off', 'event_idx': 'off'},
                {'queue-size': 16},
                {'queue-size': 1024, 'config-wce': 'off'},
                {'packed': 'on'})

    @classmethod
    def prepare(cls):
        return [Disk(cls.malloc(f'var{i}', 16), queues=2, **props)
                for i, props in enumerate(cls.variants)]

    def test_device_properties(self):
        """Legacy, no indirect descriptors, small and large rings, packed rings asked for."""
        tickets = [self.guest.start(fio_verify(f'/dev/vd{"abcdefgh"[i]}', 12))
                   for i in range(len(self.variants))]
        for props, ticket in zip(self.variants, tickets):
            with self.subTest(**props):
                self.guest.check_wait(ticket, 60 * SLOW)


class Packed(GuestTest):
    """Packed rings, a queue for each vCPU, and what may be switched off with them."""

    smp = 4
    target_args = ('--poll-us', '200')
    variants = ({}, {'config-wce': 'off'}, {'discard': 'off', 'write-zeroes': 'off'},
                {'queue-size': 16, 'event_idx': 'off', 'indirect_desc': 'off'})
    bits = {'config-wce': 11, 'discard': 13, 'write-zeroes': 14, 'indirect_desc': 28,
            'event_idx': 29, 'packed': 34}

    @classmethod
    def prepare(cls):
        return [Disk(cls.uring(f'packed{i}', 64, packed_ring=True), queues=4, packed='on', **props)
                for i, props in enumerate(cls.variants)]

    def test_1_features(self):
        for props, disk in zip(self.variants, 'abcd'):
            with self.subTest(**props):
                features = self.value(f'vd{disk}', 'device/features')
                self.assertEqual({name: features[bit] for name, bit in self.bits.items()},
                                 {name: '0' if props.get(name) == 'off' else '1'
                                  for name in self.bits})
                self.assertEqual(self.sh(f'ls /sys/block/vd{disk}/mq | wc -l'), '4')

    def test_2_data(self):
        # Without indirect tables all of a request must fit into the ring, also of one that Linux
        # made of several, however scattered its pages are: it would wait for room for ever.
        self.sh('echo 32 >/sys/block/vdd/queue/max_sectors_kb')
        tickets = [self.guest.start(fio_verify(f'/dev/vd{disk}', 8, more='--numjobs=4 '
                                               '--offset_increment=8m --cpus_allowed=0-3 '
                                               '--cpus_allowed_policy=split'))
                   for disk in 'abcd']
        for props, ticket in zip(self.variants, tickets):
            with self.subTest(**props):
                self.guest.check_wait(ticket, 200 * SLOW)

    def test_3_write_cache_and_discard(self):
        cache = '/sys/block/vda/cache_type'
        for mode in ('write through', 'write back'):
            self.sh(f"echo '{mode}' >{cache}")
            self.assertEqual(self.value('vda', 'queue/write_cache'), mode)
            self.sh(fio_verify('/dev/vda', 2, bs='4k-16k', more='--fsync=16'))
        # The storage has a cache, and it stays on.
        self.assertEqual(self.value('vdb', 'queue/write_cache'), 'write back')
        self.fails("echo 'write through' >/sys/block/vdb/cache_type")
        self.sh('blkdiscard -z -l 4M /dev/vda; blkdiscard /dev/vda')
        self.assertLessEqual(allocated(self.t.path('packed0.img')), 1)
        self.fails('blkdiscard /dev/vdc')


class Changes(GuestTest):
    """Resets, hot plug and disks that go away."""

    target_args = ('--poll-us', '200')

    @classmethod
    def prepare(cls):
        return [Disk(cls.malloc('keep', 32), queues=2), Disk(cls.uring('gone', 64), queues=2),
                Disk(cls.uring('cut', 64), queues=1)]

    def still_fine(self):
        """Guest and target are alive, and the first disk serves."""
        self.sh(fio_verify('/dev/vda', 8, more='--offset=16m'))
        self.t.rpc('vhost_get_controllers')
        self.assertTrue(self.t.running())

    def test_1_reset(self):
        """system_reset, idle and in the middle of I/O: the data stays, the disk serves."""
        before = self.sh('''dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null
            dd if=/dev/vda bs=1M count=8 iflag=direct 2>/dev/null | sha256sum''')
        self.guest.start(FIO_LOOP.format(dev='/dev/vdb', seconds=300))
        time.sleep(1.5)
        self.guest.reset(90 * SLOW)
        self.assertEqual(self.sh('dd if=/dev/vda bs=1M count=8 iflag=direct 2>/dev/null '
                                 '| sha256sum'), before)
        self.sh(fio_verify('/dev/vdb', 32))
        self.still_fine()

    def test_2_hot_plug(self):
        """device_del and device_add of a disk in a running guest, twice on one controller."""
        path = self.malloc('hot', 16)
        self.addCleanup(self.t.rpc, 'bdev_malloc_delete', name='hot')
        self.addCleanup(self.t.rpc, 'vhost_delete_controller', ctrlr='v.hot')
        for i in range(2):
            self.guest.qmp('chardev-add', id=f'hot{i}', backend={
                'type': 'socket', 'data': {'addr': {'type': 'unix', 'data': {'path': path}},
                                           'server': False}})
            self.guest.qmp('device_add', driver='vhost-user-blk-pci', id='hot',
                           chardev=f'hot{i}', num_queues=2)
            self.sh('for i in $(seq 100); do [ -b /dev/vdd ] && exit; sleep 0.1; done; exit 1')
            self.sh(fio_verify('/dev/vdd', 8))
            self.guest.qmp('device_del', id='hot')
            spindle.wait_until(lambda: self.guest.run('[ -b /dev/vdd ]')[0], 20,
                               'the disk to leave the guest', interval=0.3)
            while self.guest.wait_event('DEVICE_DELETED')['data'].get('device') != 'hot':
                pass
            self.guest.qmp('chardev-remove', id=f'hot{i}')
            spindle.wait_until(
                lambda: not self.t.rpc('vhost_get_controllers', name='v.hot')[0]['sessions'],
                10, 'the session to end')
        self.still_fine()

    def test_3_bdev_removed_under_io(self):
        """The guest gets I/O errors; it and the target live on."""
        ticket = self.guest.start(FIO_LOOP.format(dev='/dev/vdb', seconds=120))
        time.sleep(2)
        self.assertFalse(self.guest.done(ticket))
        self.t.rpc('bdev_uring_delete', name='gone')
        status, out = self.guest.wait(ticket, 30 * SLOW)
        self.assertNotEqual(status, 0, f'fio saw no error:\n{out}')
        # An error, or the end of a disk that has shrunk to nothing.
        self.assertEqual(self.sh('dd if=/dev/vdb bs=4k count=1 iflag=direct | wc -c')
                         .split()[-1], '0')
        self.fails('dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct')
        self.still_fine()

    def test_4_controller_deleted_under_io(self):
        """The connection ends; QEMU 7.2 has the guest wait, everything else goes on."""
        self.guest.start(FIO_LOOP.format(dev='/dev/vdc', seconds=300))
        time.sleep(2)
        began = time.monotonic()
        self.t.rpc('vhost_delete_controller', ctrlr='v.cut')
        self.assertLess(time.monotonic() - began, 5 * SLOW)
        self.assertFalse(os.path.exists(self.t.path('v.cut')))
        self.assertNotIn('v.cut', [c['ctrlr'] for c in self.t.rpc('vhost_get_controllers')])
        self.still_fine()
        # Nothing of the session is left that would hold the disk.
        self.t.rpc('bdev_uring_delete', name='cut')


if __name__ == '__main__':
    spindle.run_tests()
