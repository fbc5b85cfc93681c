#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kills of the target and live migrations of a guest as in test/guest, with images for files.

No cache: it would die with the target, or be older than what the other side wrote.
A killed target takes its exclusive locks over from itself and fences what it left in the cluster.
A guest migrates between two targets that have both images open: the lock goes to who writes.
CRASH_ROUNDS and MIGRATE_ROUNDS as there.
"""
import contextlib
import sys
import unittest

from ceph import HERE, POOL, Cluster, spindle

sys.path.insert(0, str(HERE.parent / 'guest'))
import test_guest_crash                                     # noqa: E402
import test_guest_migrate                                   # noqa: E402


class OnRbd:
    """Instead of each disk's file an image with what is in the file."""

    exclusive = False

    @classmethod
    def setUpClass(cls):
        reason = Cluster.available()
        if reason:
            raise unittest.SkipTest(reason)
        with contextlib.ExitStack() as undo:
            cls.cluster = Cluster('bluestore')
            undo.callback(cls.cluster.destroy)
            cls.cluster.start()
            super().setUpClass()
            cls.addClassCleanup(undo.pop_all().close)

    @classmethod
    def import_images(cls):
        for name in cls.kinds:
            cls.cluster.rbd('import', '--no-progress', cls.t.path(name + '.img'),
                            f'{POOL}/{name}')

    @classmethod
    def rbd(cls, t, name):
        t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name=name, name=name, block_size=512,
              cache='none', exclusive=cls.exclusive, user_id='spindle',
              config_file=cls.cluster.conf, key_file=cls.cluster.keyring('spindle'))


class Crash(OnRbd, test_guest_crash.Crash):
    exclusive = True
    imported = False

    @classmethod
    def bdev(cls, name):
        if not cls.imported:
            cls.imported = True
            cls.import_images()
        cls.rbd(cls.t, name)


class Migrate(OnRbd, test_guest_migrate.TwoTargets):
    @classmethod
    def configure(cls):
        cls.import_images()
        for side, t in enumerate((cls.t, cls.second_target())):
            for name in cls.kinds:
                cls.bdev(t, name, name)
                cls.controller(t, name, side)

    @classmethod
    def base(cls, t, name, path):
        cls.rbd(t, name)


if __name__ == '__main__':
    spindle.run_tests()
