#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A Linux guest whose root filesystem lies on a clone of a golden image, with a second image as
its data disk. It boots, verifies data, trims, sees resizes, and outlives an OSD."""
import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
import unittest

from ceph import HERE, MIB, POOL, SLOW, CephCase, Cluster, spindle

sys.path.insert(0, str(HERE.parent / 'guest'))
from guest import Disk, Guest, Unavailable, images          # noqa: E402

# What stands between the kernel, whose drivers are modules, and its root filesystem.
BOOT = '''#!/bin/busybox sh
mount -t proc none /proc
mount -t devtmpfs none /dev
while read -r ko; do insmod /lib/modules/"$ko"; done </lib/modules/order
for word in $(cat /proc/cmdline); do
	case $word in root=*) root=${word#root=} ;; esac
done
until [ -b "$root" ]; do sleep 0.1; done
mount -t ext4 "$root" /mnt || { echo "no root filesystem on $root"; sleep 1000; }
umount /proc
mount -o move /dev /mnt/dev
exec switch_root /mnt /sbin/init
'''
FIO = ('fio --name=v --filename={dev} --rw=randrw --bsrange=4k-128k --size={size}m --direct=1 '
       '--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog=128 '
       '--randrepeat=0 --minimal')


class RootGuest(Guest):
    """Boots with an initramfs of its own and root=/dev/vda."""

    initramfs = None

    def argv(self):
        args = super().argv()
        args[args.index('-initrd') + 1] = self.initramfs
        args[args.index('-append') + 1] += ' root=/dev/vda'
        return args


def make_images(tmp):
    """From the test guest's initramfs: a root filesystem and an initramfs that mounts it."""
    initramfs = images()[1]
    root, boot = tmp + '/root', tmp + '/boot'
    cpio = [shutil.which('busybox'), 'cpio']
    for path in (root, boot):
        os.mkdir(path)
        with open(initramfs, 'rb') as f:
            subprocess.run(cpio + ['-idm'], stdin=f, cwd=path, check=True,
                           stderr=subprocess.DEVNULL)
    with open(boot + '/init', 'w') as f:
        f.write(BOOT)
    # fio and its libraries are most of it; what boots needs neither.
    for path in ('usr', 'sbin', 'lib64', 'lib/x86_64-linux-gnu'):
        shutil.rmtree(f'{boot}/{path}', ignore_errors=True)
    with open(tmp + '/boot.cpio', 'wb') as f:
        names = subprocess.run(['find', '.'], cwd=boot, check=True, stdout=subprocess.PIPE)
        subprocess.run(cpio + ['-o', '-H', 'newc'], cwd=boot, input=names.stdout, stdout=f,
                       stderr=subprocess.DEVNULL, check=True)
    # The root's init is the test guest's; the drivers are there already.
    os.rename(root + '/init', root + '/sbin/init')
    open(root + '/lib/modules/order', 'w').close()
    with open(root + '/etc/golden', 'w') as f:
        f.write('made by test_rbd_guest\n')
    subprocess.run(['mkfs.ext4', '-q', '-d', root, tmp + '/root.img', '192M'], check=True,
                   env=dict(os.environ, PATH=os.environ['PATH'] + ':/usr/sbin:/sbin'))
    return tmp + '/root.img', tmp + '/boot.cpio'


class RootOnClone(CephCase):
    store = 'bluestore'
    timeout = 150

    @classmethod
    def setUpClass(cls):
        with contextlib.ExitStack() as undo:
            try:
                tmp = spindle.temp_dir()
                undo.callback(shutil.rmtree, tmp, ignore_errors=True)
                reason = Cluster.available()
                if reason:
                    raise unittest.SkipTest(reason)
                root, RootGuest.initramfs = make_images(tmp)
                super().setUpClass()
                cls.start(root, undo)
            except Unavailable as reason:
                raise unittest.SkipTest(str(reason)) from None
            cls.addClassCleanup(undo.pop_all().close)

    @classmethod
    def start(cls, root, undo):
        c = cls.cluster
        c.rbd('import', '--no-progress', root, f'{POOL}/golden')
        c.rbd('snap', 'create', '--no-progress', f'{POOL}/golden@v1')
        c.rbd('snap', 'protect', f'{POOL}/golden@v1')
        c.rbd('clone', f'{POOL}/golden@v1', f'{POOL}/vm1')
        # Small objects: what is freed shows sooner.
        c.rbd('create', '--size', '256M', '--object-size', '1M', f'{POOL}/data')
        cls.golden = cls.checksum('golden@v1')
        cls.t = spindle.Target('0x1', '--poll-us', '200')
        undo.callback(cls.t.cleanup)
        cls.t.start()
        disks = []
        for image, cache in (('vm1', 'writeback'), ('data', 'none')):
            cls.t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name=image, block_size=512,
                      name=image, cache=cache, user_id='spindle', config_file=c.conf,
                      key_file=c.keyring('spindle'))
            cls.t.rpc('vhost_create_blk_controller', ctrlr='v.' + image, dev_name=image)
            disks.append(Disk(cls.t.path('v.' + image)))
        cls.guest = RootGuest(disks, memory='memfd', size=384, smp=2)
        cls.guest.watch = cls.target_lives
        undo.callback(cls.guest.close)
        cls.guest.boot(timeout=90 * SLOW)

    @classmethod
    def tearDownClass(cls):
        cls.guest.close()
        if cls.t.running():
            cls.t.stop()

    @classmethod
    def target_lives(cls):
        if not cls.t.running():
            raise AssertionError('the target died')

    @classmethod
    def checksum(cls, image):
        out = cls.cluster.dir + '/sum.img'
        cls.cluster.rbd('export', '--no-progress', f'{POOL}/{image}', out)
        digest = hashlib.sha256(pathlib.Path(out).read_bytes()).hexdigest()
        os.unlink(out)
        return digest

    def sh(self, script, timeout=60):
        return self.guest.check(script, timeout * SLOW)

    def test_1_root_is_on_the_clone(self):
        self.note(f'booted in {self.guest.boot_seconds:.1f} s')
        self.assertIn('root=/dev/vda', self.sh('cat /proc/cmdline'))
        mounts = self.sh('cat /proc/mounts')
        self.assertTrue(any(line.split()[:3] == ['/dev/vda', '/', 'ext4']
                            for line in mounts.splitlines()), mounts)
        self.assertEqual(self.sh('cat /etc/golden'), 'made by test_rbd_guest')
        self.assertEqual(self.sh('cat /sys/block/vda/size'), str(192 * 2048))
        self.assertEqual(self.sh('cat /sys/block/vda/queue/write_cache'), 'write back')
        self.assertEqual(self.sh('cat /sys/block/vdb/queue/write_cache'), 'write through')
        print(self.sh('lsblk'))
        # The guest's own switch.
        self.sh('echo "write through" >/sys/block/vda/cache_type')
        self.assertEqual(self.sh('cat /sys/block/vda/cache_type'), 'write through')
        self.sh('echo "write back" >/sys/block/vda/cache_type')

    def test_2_writes_stay_in_the_clone(self):
        before = self.cluster.used('vm1')
        self.sh('dd if=/dev/urandom of=/root.file bs=1M count=24 && sync && '
                'sha256sum /root.file >/root.sum && sync')
        self.assertGreater(self.cluster.used('vm1'), before + 16 * MIB)
        self.assertEqual(self.checksum('golden@v1'), self.golden)
        self.guest.reset(90 * SLOW)
        self.sh('sha256sum -c /root.sum')
        self.assertEqual(self.checksum('golden@v1'), self.golden)

    def test_3_fio_verify(self):
        self.sh(FIO.format(dev='/dev/vdb', size=32), 120)

    def test_4_trim_frees_objects(self):
        """ext4 on the data disk: what files took is given back to the cluster."""
        self.sh('blkdiscard /dev/vdb && mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt')
        empty = self.cluster.used('data')
        self.sh('dd if=/dev/urandom of=/mnt/f bs=1M count=64 && sync')
        full = self.cluster.used('data')
        self.sh('rm /mnt/f && sync && fstrim -v /mnt')
        trimmed = self.cluster.used('data')
        self.note('rbd du: empty filesystem %d MiB, with 64 MiB of files %d MiB, after fstrim '
                  '%d MiB' % tuple(n // MIB for n in (empty, full, trimmed)))
        self.assertGreater(full, empty + 48 * MIB)
        self.assertGreater(full - trimmed, 48 * MIB)
        self.sh('umount /mnt && mount -o discard /dev/vdb /mnt && '
                'dd if=/dev/urandom of=/mnt/g bs=1M count=64 && sync')
        full = self.cluster.used('data')
        self.sh('rm /mnt/g && sync && sleep 1 && umount /mnt')
        trimmed = self.cluster.used('data')
        self.note(f'mounted with discard: {full // MIB} MiB, after rm {trimmed // MIB} MiB')
        self.assertGreater(full - trimmed, 48 * MIB)

    def test_5_resize_reaches_the_guest(self):
        self.cluster.rbd('resize', '--no-progress', f'{POOL}/data', '--size', '300M')
        spindle.wait_until(lambda: self.sh('cat /sys/block/vdb/size') == str(300 * 2048), 20,
                           'the new size in the guest', 0.3)

    def test_6_osd_down_under_fio(self):
        """Both disks under load, the OSD killed and back: the guest waits, no error, no lie."""
        root = self.guest.start('for i in 1 2 3 4 5 6; do dd if=/dev/zero of=/root.big bs=1M '
                                'count=8 conv=fsync 2>&1 || exit 1; sleep 1; done')
        data = self.guest.start(FIO.format(dev='/dev/vdb', size=240))
        time.sleep(1)
        self.assertFalse(self.guest.done(data))
        self.cluster.kill_osd()
        time.sleep(8)
        self.assertFalse(self.guest.done(data))
        self.assertTrue(self.health(self.t, 'data')['stalled'])
        self.cluster.start_osd()
        self.guest.check_wait(data, 90 * SLOW, 'fio')
        self.guest.check_wait(root, 60 * SLOW, 'dd')
        self.assertEqual(self.sh('dmesg | grep -ci "i/o error" || true'), '0')
        self.sh('sha256sum -c /root.sum')

    def test_7_golden_is_untouched(self):
        self.assertEqual(self.checksum('golden@v1'), self.golden)
        self.assertEqual(self.cluster.objects('golden') > 0, True)


if __name__ == '__main__':
    spindle.run_tests()
