#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Image locks between the target and QEMU's own programs, in both orders and all four
combinations of read-only and read-write.

What is expected is what QEMU does to itself. A guest's disk (qemu-system) refuses writers and, if
it writes, readers. The tools share more: qemu-io and qemu-storage-daemon do not mind another
writer while they only read, so a read-only tool goes together with us as it does with a qemu.
"""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import spindle  # noqa: E402

EBUSY = -16


class Locks(spindle.TestCase):
    timeout = 120

    def setUp(self):
        self.dir = self.temp_dir()
        self.image = os.path.join(self.dir, 'disk.img')
        with open(self.image, 'wb') as f:
            f.truncate(16 << 20)

    # ---- us ----

    def create(self, t, readonly):
        t.rpc('bdev_aio_create', name='disk', filename=self.image, block_size=512,
              readonly=readonly)

    def create_refused(self, t, readonly, holder):
        error = self.rpc_fails(t, EBUSY, 'bdev_aio_create', name='disk', filename=self.image,
                               block_size=512, readonly=readonly)
        told = f'{error.message} {error.data} {t.log()}'
        self.assertIn(self.image, told)
        self.assertIn('image lock', told)
        self.assertIn(f'{holder.pid}', told)
        self.assertEqual([b for b in t.rpc('bdev_get_bdevs') if b['name'] == 'disk'], [])

    # ---- them ----

    def spawn(self, *command):
        p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True, cwd=self.dir)
        self.addCleanup(self.end, p)
        return p

    def end(self, p):
        if p.poll() is None:
            p.kill()
        if not p.stderr.closed:
            p.communicate()

    def guest(self, readonly):
        return (spindle.need_tool('qemu-system-x86_64'), '-S', '-nodefaults', '-display', 'none',
                '-machine', 'q35', '-accel', 'tcg', '-drive',
                f'if=none,id=d,format=raw,file={self.image},readonly={"on" if readonly else "off"}',
                '-device', 'virtio-blk-pci,drive=d')

    def storage_daemon(self, readonly):
        on = 'on' if readonly else 'off'
        return (spindle.need_tool('qemu-storage-daemon'), '--blockdev',
                f'driver=file,node-name=f,filename={self.image},read-only={on}', '--export',
                f'type=vhost-user-blk,id=e,node-name=f,writable={"off" if readonly else "on"},'
                f'addr.type=unix,addr.path={self.dir}/qsd.sock')

    def qemu_io(self, readonly):
        return (spindle.need_tool('qemu-io'), '-f', 'raw', *(['-r'] if readonly else []),
                self.image)

    def locks(self):
        inode = os.stat(self.image).st_ino
        with open('/proc/locks') as f:
            return [line.split()[-2:] for line in f if f':{inode} ' in line]

    def hold(self, command):
        """Starts it and waits until it has its locks: a guest's disk takes 201 last."""
        p = self.spawn(*command)
        last = 201 if 'virtio-blk-pci,drive=d' in command else 100

        def ready():
            if p.poll() is not None:
                self.fail(f'{command[0]} ended: {p.communicate()[1]}')
            return any(int(a) <= last <= int(b) for a, b in self.locks())
        spindle.wait_until(ready, what='locks')
        return p

    def refused(self, command):
        p = self.spawn(*command)
        try:
            stderr = p.communicate('', timeout=20 * spindle.SLOW)[1]
        except subprocess.TimeoutExpired:
            self.fail(f'{command[0]} was not refused')
        self.assertNotEqual(p.returncode, 0)
        self.assertRegex(stderr, 'Failed to get .* lock')

    def accepted(self, command):
        """It runs on for a while, which a refused one does not."""
        p = self.spawn(*command)
        try:
            p.wait(0.7 * spindle.SLOW)
        except subprocess.TimeoutExpired:
            self.end(p)
            return
        self.fail(f'{command[0]} ended: {p.communicate()[1]}')

    # ---- the table: who, then (our readonly, theirs) that must be refused ----

    def both_orders(self, command, conflicts):
        for ours in (False, True):
            for theirs in (False, True):
                with self.subTest(order='they first', ours=ours, theirs=theirs):
                    self.they_first(command(theirs), ours, (ours, theirs) in conflicts)
                with self.subTest(order='we first', ours=ours, theirs=theirs):
                    self.we_first(command(theirs), ours, (ours, theirs) in conflicts)

    def they_first(self, command, readonly, conflict):
        with spindle.Target('0x1', '--poll-us', '20') as t:
            p = self.hold(command)
            if not conflict:
                self.create(t, readonly)
                t.rpc('bdev_aio_delete', name='disk')
            else:
                self.create_refused(t, readonly, p)
            self.end(p)
            spindle.wait_until(lambda: not self.locks(), what='release of their locks')
            self.create(t, readonly)

    def we_first(self, command, readonly, conflict):
        with spindle.Target('0x1', '--poll-us', '20') as t:
            self.create(t, readonly)
            if conflict:
                self.refused(command)
            else:
                self.accepted(command)
            t.rpc('bdev_aio_delete', name='disk')

    def test_guest(self):
        self.both_orders(self.guest, {(False, False), (False, True), (True, False)})

    def test_storage_daemon(self):
        self.both_orders(self.storage_daemon, {(False, False), (True, False)})

    def test_qemu_io(self):
        self.both_orders(self.qemu_io, {(False, False), (True, False)})

    # ---- the rest ----

    def test_bytes(self):
        """Exactly the bytes of QEMU's protocol, and none after the bdev is gone."""
        t = self.target('0x1', '--poll-us', '20')
        for readonly, used in ((False, ['100', '101']), (True, ['100', '100'])):
            self.create(t, readonly)
            self.assertEqual(sorted(self.locks()), [used, ['201', '201'], ['203', '203']])
            t.rpc('bdev_aio_delete', name='disk')
            self.assertEqual(self.locks(), [])

    def test_two_targets(self):
        t, other = (self.target('0x1', '--poll-us', '20') for _ in range(2))
        self.create(t, False)
        self.create_refused(other, False, t.proc)
        self.create_refused(other, True, t.proc)
        t.kill()
        self.create(other, False)

    def test_one_target_twice(self):
        t = self.target('0x1', '--poll-us', '20')
        self.create(t, False)
        self.rpc_fails(t, EBUSY, 'bdev_aio_create', name='again', filename=self.image,
                       block_size=512)
        t.rpc('bdev_aio_delete', name='disk')
        self.create(t, True)
        t.rpc('bdev_aio_create', name='again', filename=self.image, block_size=512, readonly=True)

    def test_force_share(self):
        """QEMU's way round the locks works on us too."""
        t = self.target('0x1', '--poll-us', '20')
        self.create(t, False)
        subprocess.run((spindle.need_tool('qemu-img'), 'info', '-U', self.image), check=True,
                       stdout=subprocess.DEVNULL)


if __name__ == '__main__':
    spindle.run_tests()
