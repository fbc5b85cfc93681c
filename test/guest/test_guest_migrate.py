#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Live migration from QEMU to QEMU on one host, under a guest's fio with verify.

Source and destination have memory of their own, so a write to the guest's memory that the dirty
log misses is data that the guest does not find. But a page that the guest itself writes is sent
all the same, and fio writes all of its buffers; so something else reads into the page cache,
which the guest never writes, and checks it a little later. For the same reason one ring is so
large that its used part has pages of its own, and requests take so long that many end only after
the guest has been stopped.

Source and destination meet at one bdev: each has a controller on it, v.NAME.0 and v.NAME.1, in
turns. Or at one file below two targets, which hold its locks in turns (lock_in_use).

MIGRATE_ROUNDS: how many times, 2 if not given.
"""
import hashlib
import os
import time

from guest import GuestError
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
        cls.configure()
        return cls.disks(0)

    @classmethod
    def configure(cls):
        for name in cls.kinds:
            cls.bdev(cls.t, name, cls.t.path(name + '.img'))
            for side in (0, 1):
                cls.controller(cls.t, name, side)

    @classmethod
    def bdev(cls, t, name, path):
        us = 30000
        cls.base(t, name, path)
        t.rpc('bdev_delay_create', base_bdev_name=name, name=name + '.slow', avg_read_latency=us,
              p99_read_latency=us, avg_write_latency=us, p99_write_latency=us)

    @classmethod
    def base(cls, t, name, path):
        t.rpc('bdev_aio_create', filename=path, name=name, block_size=512)

    @classmethod
    def controller(cls, t, name, side):
        t.rpc('vhost_create_blk_controller', ctrlr=f'v.{name}.{side}', dev_name=name + '.slow',
              packed_ring=name == 'packed')

    @classmethod
    def disks(cls, side):
        return [Disk(cls.t.path(f'v.{name}.{side}'), queues=2, **props)
                for name, props in cls.kinds.items()]

    def destination(self, side):
        to = Guest(self.disks(side), memory=self.memory, size=self.size, smp=self.smp,
                   incoming=True)
        self.undo.callback(to.close)
        return to.spawn()

    def migrate(self, side, bandwidth):
        """To a new QEMU on that side's controllers; what query-migrate says of it."""
        to = self.destination(side)
        info = self.guest.migrate_to(to, 60 * SLOW, max_bandwidth=bandwidth, downtime_limit=500)
        type(self).guest = to
        return info

    def state(self):
        """For when a load does not end: who waits for what, and does another request help?"""
        look = 'grep . /sys/block/vd[ab]/inflight; '
        text = self.guest.run(look + 'ps | grep -v "]"; dmesg | tail -20; '
                              'for d in vda vdb; do for cpu in 1 2; do timeout 5 taskset $cpu dd '
                              'if=/dev/$d of=/dev/null bs=4k count=1 skip=9 iflag=direct; done; '
                              'done; ' + look)[1]
        for t in spindle.Target.live:
            if t.running():
                text += '\n'.join([str(t.rpc('vhost_get_controllers')), t.log_tail()])
        return text

    def cancelled(self, side):
        """Half way, so that the log is given and taken away again: all stays as it was."""
        to = self.destination(side)
        self.guest.migrate_start(to, max_bandwidth=16 * MIB)
        time.sleep(1)
        self.guest.migrate_cancel()
        to.close()
        self.assertEqual(self.guest.qmp('query-status')['status'], 'running')

    def test_under_load(self):
        tickets = []
        for dev in ('/dev/vda', '/dev/vdb'):
            fio = FIO_ROUND.format(dev=dev, size=32)
            tickets += [self.guest.start(UNTIL_ENOUGH.format(fio=fio)),
                        self.guest.start(CACHED.format(dev=dev, sum=self.sum))]
        time.sleep(1)
        self.cancelled(1)
        infos = []
        for i in range(ROUNDS):
            time.sleep(1.2 + 0.41 * (i % 4))
            for ticket in tickets:
                if self.guest.done(ticket):
                    self.guest.check_wait(ticket)
                    self.fail('a load ended by itself')
            # Slow ones log for longer and send pages more often.
            infos.append(self.migrate((i + 1) % 2, (128 if i % 2 == 0 else 1024) * MIB))
        time.sleep(1)
        self.sh('touch /tmp/enough')
        try:
            rounds = [self.guest.check_wait(t, 60 * SLOW, 'a load').split()[-1]
                      for t in tickets]
        except GuestError:
            print(self.state(), flush=True)
            raise
        self.assertEqual(self.sh(TROUBLE), '')
        for key, unit in (('downtime', 'ms'), ('total-time', 'ms')):
            print(f'     {key}: {[info[key] for info in infos]} {unit}', flush=True)
        print(f'     rounds over dirty memory: {[i["ram"]["dirty-sync-count"] for i in infos]}; '
              f'loads: {rounds}', flush=True)


class TwoTargets(Migrate):
    """Each side has a target of its own, started in the same directory.

    Both have the file open; its locks go with the guest.
    """

    @classmethod
    def configure(cls):
        for side, t in enumerate((cls.t, cls.second_target())):
            for name in cls.kinds:
                cls.bdev(t, name, cls.t.path(name + '.img'))
                cls.controller(t, name, side)

    @classmethod
    def base(cls, t, name, path):
        t.rpc('bdev_aio_create', filename=path, name=name, block_size=512, lock_in_use=True)

    @classmethod
    def second_target(cls):
        other = spindle.Target(cls.mask, *cls.t.args, directory=cls.t.dir,
                               sock=cls.t.path('other.sock'))
        cls.undo.callback(cls.end, other)
        return other.start()

    @staticmethod
    def end(t):
        try:
            if t.running():
                t.stop()
        finally:
            t.cleanup()


if __name__ == '__main__':
    spindle.run_tests()
