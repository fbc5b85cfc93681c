#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""scripts/spindle.service under a real systemd: start, crash, restart, upgrade in place, stop.

systemd is the first process of namespaces of its own, with this unit and nothing else to run,
its own /run and /var/lib, and /etc, /proc/sys and the console out of its reach. Skipped where
that cannot be had."""
import contextlib
import os
import pathlib
import shutil
import subprocess
import time

from takeovercase import TakeoverCase, Load, drive, drive_for
from vhostcase import MIB, SLOW, spindle

SYSTEMD = '/lib/systemd/systemd'
BOOT = '''
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind /etc /etc
mount -o remount,bind,ro /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for file in /dev/console /dev/kmsg; do
	[ ! -e $file ] || mount --bind /dev/null $file
done
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$1" \\
	{systemd} --system --unit=test.target --log-target=console --log-level=notice
'''
TARGET = '[Unit]\nDescription=Nothing\nDefaultDependencies=no\n'
# What the unit says of this host is not ours to use; there is no journal.
DROP_IN = '''
[Unit]
DefaultDependencies=no
[Service]
EnvironmentFile=
EnvironmentFile=-{dir}/options
StandardOutput=append:{dir}/log
StandardError=append:{dir}/log
'''


class Machine:
    """A booted systemd, until close()."""

    def __init__(self):
        self.dir = pathlib.Path(spindle.temp_dir())
        self.proc = self.pid = None
        self.cgroup = self._cgroup() / f'test.{os.getpid()}'
        self._units()
        self.cgroup.mkdir()
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _cgroup():
        """Where cgroup2 is mounted, and we are in it."""
        with open('/proc/self/mountinfo', encoding='utf-8') as f:
            mounts = [line.split() for line in f]
        with open('/proc/self/cgroup', encoding='utf-8') as f:
            own = [line[3:].strip() for line in f if line.startswith('0::')]
        for m in mounts:
            if own and m[m.index('-') + 1] == 'cgroup2' and m[3] == '/':
                return pathlib.Path(m[4] + own[0])
        raise spindle.unittest.SkipTest('no cgroup2 is mounted')

    def _units(self):
        sbin, units = self.dir / 'usr' / 'sbin', self.dir / 'units'
        sbin.mkdir(parents=True)
        (units / 'spindle.service.d').mkdir(parents=True)
        (sbin / 'spindle-vhost').symlink_to(spindle.BUILD.resolve() / 'bin' / 'vhost')
        unit = (spindle.REPO / 'scripts' / 'spindle.service').read_text(encoding='utf-8')
        # As `make install PREFIX=...` does.
        (units / 'spindle.service').write_text(unit.replace('/usr/local', f'{self.dir}/usr'))
        (units / 'spindle.service.d' / 'test.conf').write_text(DROP_IN.format(dir=self.dir))
        (units / 'test.target').write_text(TARGET)
        self.options()

    def options(self, more=''):
        (self.dir / 'options').write_text(
            f'SPINDLE_OPTIONS=-r {self.dir}/rpc.sock --disable-cpumask-locks --poll-us 50 {more}\n')

    def _boot(self):
        unshare = spindle.need_tool('unshare')

        def enter():
            spindle._die_with_parent()
            (self.cgroup / 'cgroup.procs').write_text(str(os.getpid()))
        with open(self.dir / 'systemd.log', 'wb') as log:
            self.proc = subprocess.Popen(
                [unshare, '--fork', '--kill-child', '--pid', '--mount', '--uts', '--ipc',
                 '--cgroup', 'sh', '-c', BOOT.format(systemd=SYSTEMD), 'sh', str(self.dir / 'units')],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=enter)
        end = time.monotonic() + 10 * SLOW
        while not self._is_up():
            if self.proc.poll() is not None or time.monotonic() > end:
                said = (self.dir / 'systemd.log').read_text(errors='replace').split('\n')
                raise spindle.unittest.SkipTest('systemd does not start here: '
                                                + ' / '.join(said[-4:]))
            time.sleep(0.05)

    def _is_up(self):
        with open(f'/proc/{self.proc.pid}/task/{self.proc.pid}/children', encoding='utf-8') as f:
            self.pid = (f.read().split() or [None])[0]
        return self.pid and self.systemctl('is-system-running').stdout.strip() == 'running'

    def systemctl(self, *args):
        return subprocess.run(['nsenter', '-t', self.pid, '-m', '-p', '-r', '-w', 'systemctl',
                               *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60 * SLOW, check=False)

    def root(self, path):
        """What is there in its name space."""
        return f'/proc/{self.pid}/root{path}'

    def log(self):
        with contextlib.suppress(FileNotFoundError):
            return (self.dir / 'log').read_text(errors='replace')
        return ''

    def close(self):
        if self.proc:
            self.proc.kill()
            self.proc.wait()
        # Empty as soon as the kernel has reaped them all.
        for _ in range(100):
            try:
                for path, _, _ in os.walk(self.cgroup, topdown=False):
                    os.rmdir(path)
                break
            except OSError:
                time.sleep(0.05)
        shutil.rmtree(self.dir, ignore_errors=True)


class Unit(TakeoverCase):
    """One machine; each test starts the unit and stops it."""

    @classmethod
    def setUpClass(cls):
        spindle.need_root()
        for tool in (SYSTEMD, 'systemctl', 'nsenter'):
            spindle.need_tool(tool)
        cls.machine = Machine()

    @classmethod
    def tearDownClass(cls):
        cls.machine.close()

    def setUp(self):
        self.m = self.machine
        self.m.options()
        self.addCleanup(self.end)
        self.ctl('start', 'spindle')
        self.rpc('bdev_malloc_create', num_blocks=32768, block_size=512, name='m0')
        path = str(self.m.dir / 'disk.img')
        with open(path, 'wb') as f:
            f.truncate(16 * MIB)
        self.rpc('bdev_uring_create', name='f0', filename=path, block_size=512)
        for name, bdev in (('cf', 'f0'), ('cm', 'm0')):
            self.rpc('vhost_create_blk_controller', ctrlr=name, dev_name=bdev)

    def end(self):
        if getattr(self, '_trouble', False):
            print('--- the log\n' + '\n'.join(self.m.log().splitlines()[-60:]))
        self.m.systemctl('stop', 'spindle')
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.m.root('/var/lib/spindle/state.json'))

    def ctl(self, *args):
        done = self.m.systemctl(*args)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def show(self, what):
        return self.ctl('show', '-p', what, '--value', 'spindle').strip()

    def rpc(self, method, **params):
        with spindle.RpcSocket(f'{self.m.dir}/rpc.sock') as rpc:
            return rpc.call(method, params)

    def kill(self):
        # Its process id is another out here.
        return self.ctl('kill', '-s', 'KILL', '--kill-who=main', 'spindle')

    def front_end(self, name):
        return self.connect(self.m.root(f'/run/spindle/{name}'), mem_size=8 * MIB)

    def wait_main(self, old):
        """Until the unit runs, and another process is the main one."""
        def other():
            return self.show('MainPID') not in ('0', old) and self.show('ActiveState') == 'active'
        spindle.wait_until(other, 15, f'another process than {old}')

    def test_crash_and_restart(self):
        load = Load(self.front_end('cf'), 16)
        for end in (self.kill, lambda: self.ctl('restart', 'spindle')):
            drive_for([load], 0.2)
            old = self.show('MainPID')
            end()
            self.wait_main(old)
            # As QEMU does with reconnect=1; what was in flight is done again.
            load.fe.reconnect()
            drive_for([load], 0.2)
        load.drain()
        load.check_disk()
        self.assertEqual(self.show('NRestarts'), '0')   # a restart by hand begins anew
        self.ctl('stop', 'spindle')
        self.assertEqual(os.listdir(self.m.root('/run/spindle')), [])
        self.assertEqual((self.show('ActiveState'), self.show('Result')), ('inactive', 'success'))

    def test_reload(self):
        loads = [Load(self.front_end('cf'), 16), Load(self.front_end('cm'), 16)]
        for _ in range(3):
            drive_for(loads, 0.1)
            old, given = self.show('MainPID'), self.m.log().count('a successor serves our guests')
            self.ctl('reload', 'spindle')
            drive(loads, lambda given=given: self.m.log().count('a successor serves our guests')
                  > given, 20, 'a takeover')
            drive(loads, lambda old=old: self.show('MainPID') != old, 10, 'another main process')
        # One that cannot be done leaves all as it is, and one that can follows.
        self.m.options('--no-such-flag')
        old = self.show('MainPID')
        self.ctl('reload', 'spindle')
        drive(loads, lambda: "option '--no-such-flag'" in self.m.log(), 10, 'a refusal')
        drive_for(loads, 0.1)
        self.assertEqual(self.show('MainPID'), old)
        self.m.options()
        self.ctl('reload', 'spindle')
        drive(loads, lambda: self.show('MainPID') != old, 20, 'a takeover')
        self.assertEqual((self.show('ActiveState'), self.show('NRestarts')), ('active', '0'))
        # The unit still has what runs: a crash is seen, and mended.
        old = self.show('MainPID')
        self.check_load(loads)
        self.kill()
        self.wait_main(old)
        self.assertEqual(self.show('NRestarts'), '1')
        loads[0].fe.reconnect()
        loads[0].check_disk()


if __name__ == '__main__':
    spindle.run_tests()
