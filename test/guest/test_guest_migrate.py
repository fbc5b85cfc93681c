#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Live migration from QEMU to QEMU on one host, under a guest's fio with verify.

Source and destination have memory of their own, so a write to the guest's memory that the dirty
log misses is data that the guest does not find. But a page that the guest itself writes is sent
all the same, and fio writes all of its buffers; so something else reads into the page cache,
which the guest never writes, and checks it a little later. For the same reason one ring is so
large that its used part has pages of its own, and requests take so long that many end only after
the guest has been stopped.

Source and destination meet at one bdev, where each has a controller, v.NAME.0 and v.NAME.1, in
turns; or at one file, which two targets have open and use in turns.

MIGRATE_ROUNDS: how many times, 2 if not given.
"""
import hashlib
import os
import time

from test_guest import MIB, SLOW, Disk, Guest, GuestTest, sparse, spindle
from test_guest_crash import FIO_ROUND, TROUBLE, UNTIL_ENOUGH

ROUNDS = int(os.environ.get('MIGRATE_ROUNDS', 2))
# Reads the second half of a disk, which nobody writes, and looks at it in the page cache later.
CACHED = """n=0; while [ ! -e /tmp/enough ]; do
    blockdev --flushbufs {dev}
    dd if={dev} of=/dev/null bs=1M skip=64 count=16 2>/dev/null
    sleep 0.5
    sum=$(dd if={dev} bs=1M skip=64 count=16 2>/dev/null | sha256sum)
    [ "$sum" = "{sum}  -" ] || {{ echo "{dev}: pass $n: $sum"; exit 1; }}
    n=$((n+1))
done; echo passes=$n"""


class Migrate(GuestTest):
    timeout = 60 + 30 * ROUNDS
    size = 384
    target_args = ('--poll-us', '200', '--log-level', 'INFO')
    kinds = {'split': {'queue-size': 1024}, 'packed': {'packed': 'on'}}

    @classmethod
    def prepare(cls):
        data = os.urandom(16 * MIB)
        cls.sum = hashlib.sha256(data).hexdigest()
        for name in cls.kinds:
            path = cls.t.path(name + '.img')
            sparse(path, 128 * MIB)
            with open(path, 'r+b') as f:
                f.seek(64 * MIB)
                f.write(data)
        cls.targets = cls.both()
        for t in dict.fromkeys(cls.targets):
            for name in cls.kinds:
                t.rpc('bdev_aio_create', filename=cls.t.path(name + '.img'), name=name,
                      block_size=512, lock_in_use=True)
                us = 30000
                t.rpc('bdev_delay_create', base_bdev_name=name, name=name + '.slow',
                      avg_read_latency=us, p99_read_latency=us, avg_write_latency=us,
                      p99_write_latency=us)
        for side, t in enumerate(cls.targets):
            for name in cls.kinds:
                t.rpc('vhost_create_blk_controller', ctrlr=f'v.{name}.{side}',
                      dev_name=name + '.slow', packed_ring=name == 'packed')
        return cls.disks(0)

    @classmethod
    def both(cls):
        """The targets of both sides: here one and the same."""
        return cls.t, cls.t

    @classmethod
    def disks(cls, side):
        return [Disk(cls.targets[side].path(f'v.{name}.{side}'), queues=2, **props)
                for name, props in cls.kinds.items()]

    def migrate(self, side, bandwidth):
        """To a new QEMU on that side's controllers; what query-migrate says of it."""
        to = Guest(self.disks(side), memory=self.memory, size=self.size, smp=self.smp,
                   incoming=True)
        type(self).undo.callback(to.close)
        to.spawn()
        info = self.guest.migrate_to(to, 60 * SLOW, max_bandwidth=bandwidth, downtime_limit=500)
        type(self).guest = to
        return info

    def test_under_load(self):
        tickets = []
        for dev in ('/dev/vda', '/dev/vdb'):
            fio = FIO_ROUND.format(dev=dev, size=32)
            tickets += [self.guest.start(UNTIL_ENOUGH.format(fio=fio)),
                        self.guest.start(CACHED.format(dev=dev, sum=self.sum))]
        infos = []
        for i in range(ROUNDS):
            time.sleep(1.2 + 0.41 * (i % 4))
            for ticket in tickets:
                if self.guest.done(ticket):
                    self.guest.check_wait(ticket)
                    self.fail('a load ended by itself')
            # Slow ones log for longer and send pages more often.
            infos.append(self.migrate((i + 1) % 2, (64 if i % 2 == 0 else 1024) * MIB))
        time.sleep(1)
        self.sh('touch /tmp/enough')
        rounds = [self.guest.check_wait(t, 60 * SLOW, 'a load').split()[-1]
                  for t in tickets]
        self.assertEqual(self.sh(TROUBLE), '')
        for key, unit in (('downtime', 'ms'), ('total-time', 'ms')):
            print(f'     {key}: {[info[key] for info in infos]} {unit}', flush=True)
        print(f'     rounds over dirty memory: {[i["ram"]["dirty-sync-count"] for i in infos]}; '
              f'loads: {rounds}', flush=True)


class MigrateToAnotherTarget(Migrate):
    """The same between two processes: the image's locks go from one to the other."""

    @classmethod
    def both(cls):
        other = spindle.Target(cls.mask, *cls.memory_flags())
        cls.undo.callback(cls.end_other, other)
        other.start()
        return cls.t, other

    @staticmethod
    def end_other(other):
        if other.running():
            other.stop()
        other.cleanup()


if __name__ == '__main__':
    spindle.run_tests()
