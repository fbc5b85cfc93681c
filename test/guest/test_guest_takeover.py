#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Upgrades in place under a real guest's load: QEMU and the driver see nothing of them.

One guest with a disk on a file (split rings) and one in memory (packed rings), and fio with
verify on both all the time. QEMU does not reconnect here: a connection that was lost would stay
lost, and fio hang.

TAKEOVERS: how many times a successor takes over, 3 if not given.
"""
import os
import time

from test_guest import SLOW, Disk, GuestTest, spindle
from takeover import GIVEN, Refused, outcome, with_logs
from test_guest_crash import FIO_ROUND, TROUBLE, UNTIL_ENOUGH

ROUNDS = int(os.environ.get('TAKEOVERS', 3))


class Takeover(GuestTest):
    timeout = 90 + 5 * ROUNDS
    target_args = ('--poll-us', '200')

    @classmethod
    def prepare(cls):
        return [Disk(cls.uring('file', 64), queues=2),
                Disk(cls.malloc('mem', 64, packed_ring=True), queues=2, packed='on')]

    def succeed(self):
        """A new process takes over; -> for how many ms nobody served, by the old one's log.

        Refused where the disk was too slow; the old one serves then.
        """
        old = self.t
        new = spindle.Target(old.mask, *old.args, '--takeover', directory=old.dir, sock=old.sock)
        self.undo.callback(new.cleanup)
        new.spawn()
        # The guest is alive as long as either of the two is.
        with with_logs(old, new):
            spindle.wait_until(lambda: outcome(old, new), 20, 'a takeover')
            type(self).t = new
            self.assertEqual(old.wait(), 0)
        return int(old.log().partition(GIVEN + ' after ')[2].split()[0]) / 1e3

    def succeed_at_last(self):
        for _ in range(4):
            try:
                return self.succeed()
            except Refused as why:
                print(f'     refused, the predecessor has gone on: {why}', flush=True)
                time.sleep(1)
        return self.succeed()

    def test_under_load(self):
        self.sh('rm -f /tmp/enough; dmesg -c >/dev/null')
        tickets = [self.guest.start(UNTIL_ENOUGH.format(fio=FIO_ROUND.format(dev=dev, size=16)))
                   for dev in ('/dev/vda', '/dev/vdb')]
        stopped = []
        for i in range(ROUNDS):
            time.sleep(1 + 0.37 * (i % 4))
            stopped.append(self.succeed_at_last())
            for ticket in tickets:
                self.assertFalse(self.guest.done(ticket), 'fio ended by itself')
        time.sleep(1)
        self.sh('touch /tmp/enough')
        rounds = [self.guest.check_wait(t, 60 * SLOW, 'fio').split()[-1] for t in tickets]
        self.assertEqual(self.sh(TROUBLE), '')
        for c in self.t.rpc('vhost_get_controllers'):
            self.assertEqual(len(c['sessions']), 1)
        stopped.sort()
        print(f'     {ROUNDS} takeovers, rings stopped: median {stopped[ROUNDS // 2]:.1f} ms, '
              f'longest {stopped[-1]:.1f} ms; fio: {rounds}', flush=True)


if __name__ == '__main__':
    spindle.run_tests()
