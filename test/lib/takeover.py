# SPDX-License-Identifier: BSD-3-Clause
"""What became of a takeover, from the logs of both processes: done, refused because a disk was
too slow (the predecessor goes on, and one may try again), or failed."""
import contextlib
import re

import spindle

TAKEN = 'takeover: all is ours'
GIVEN = 'takeover: a successor serves our guests'
KEPT = 'going on as before'
# A machine that others use as well has disks that are slow for a while.
SLOW_DISK = re.compile(r'the predecessor gives up: (.*: a request has been in flight for \d+ ms|'
                       r'stopping the rings: .*: its requests do not end)')


class Refused(AssertionError):
    """Not a failure of the takeover: a request took longer than rings are given to stop."""


@contextlib.contextmanager
def with_logs(old, new):
    """What fails in here is told with the logs of both."""
    try:
        yield
    except Refused:
        raise
    except AssertionError as error:
        raise AssertionError(f'{error}\n{both_logs(old, new)}') from None


def both_logs(old, new):
    return (f'--- the successor ({spindle.status_of(new)})\n{new.log_tail(200)}\n'
            f'--- the predecessor ({spindle.status_of(old)})\n{old.log_tail(200)}')


def outcome(old, new):
    """Whether new has taken over; Refused or AssertionError when it has left without."""
    # In this order: what it said before it left is in its log then.
    running = new.running()
    log = new.log()
    if TAKEN in log and running:
        return True
    if running:
        return False
    refusal = SLOW_DISK.search(log)
    if not refusal or not old.running() or KEPT not in old.log():
        why = 'the successor has left'
        if TAKEN not in log and 'ERROR' not in log:
            why += ' without a word'
        raise AssertionError(why)
    raise Refused(refusal.group(1))
