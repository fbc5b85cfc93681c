#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Postcopy live migration: the guest goes over while most of its memory is still at the source.

As test_guest_migrate.py, whose loads and disks these are: fio with verify, and reads into the
page cache, on a disk with split rings and one with packed ones. The link is so slow that the
memory takes seconds, in which every ring, table and buffer may be missing.

MIGRATE_ROUNDS: how many times, 2 if not given.
"""
import os

from test_guest_migrate import Migrate, TwoTargets
from test_guest import MIB, SLOW, spindle

BANDWIDTH = int(os.environ.get('POSTCOPY_MIB', 64)) * MIB


class Postcopy(Migrate):
    memory = 'memfd'

    def cancelled(self, side):
        pass

    def migrate(self, side, bandwidth):
        to = self.destination(side)
        info = self.guest.migrate_to(to, 60 * SLOW, postcopy=0.5, max_bandwidth=BANDWIDTH,
                                     max_postcopy_bandwidth=BANDWIDTH)
        type(self).guest = to
        print('     requested pages:', info['ram']['postcopy-requests'], flush=True)
        self.assertGreater(info['ram']['postcopy-requests'], 0)
        return info


class PostcopyHuge(Postcopy):
    memory = 'hugepages'


del Migrate, TwoTargets

if __name__ == '__main__':
    spindle.run_tests()
