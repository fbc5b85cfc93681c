# SPDX-License-Identifier: BSD-3-Clause
"""A real Ceph cluster for tests, disks on it, and load to watch them under.

    class Disks(CephCase):              # one cluster per class, made at its first test
        store = 'bluestore'
        def test_it(self):
            t = self.target()
            self.image('a', 64)                         # testpool/a, 64 MiB
            path = self.ctrlr(t, 'c0', self.disk(t, 'a', cache='none'))

Cluster is the cluster alone; see cluster.sh, which does the work. Load and Neighbour keep a
disk busy and check what they read: Load in a thread, deep; Neighbour in a process of its own,
one request at a time, so that its latencies are the target's and not Python's.
"""
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'lib'), str(HERE.parent / 'functional')]

import spindle                                              # noqa: E402
import test_blk_data as blk_data                            # noqa: E402
from vhostcase import F, MIB, SLOW, WAIT, VhostCase, pattern     # noqa: E402, F401

PROGRAMS = ('ceph', 'ceph-mon', 'ceph-osd', 'rbd', 'rados', 'ceph-authtool', 'osdmaptool',
            'monmaptool')
POOL = 'testpool'


class Cluster:
    """One monitor and one OSD in a private directory; destroy() leaves nothing."""

    def __init__(self, store='memstore', auth='cephx', extra=''):
        self.dir = tempfile.mkdtemp(prefix='ceph.', dir='/tmp')
        self.conf = self.dir + '/ceph.conf'
        self.env = dict(os.environ, STORE=store, AUTH=auth, EXTRA=extra, OWNER=str(os.getpid()))
        self.store = store

    @staticmethod
    def available():
        """Why there can be no cluster here, or None."""
        if os.geteuid() != 0:
            return 'needs root'
        missing = [p for p in PROGRAMS if not shutil.which(p)
                   and not shutil.which(p, path='/usr/sbin:/sbin')]
        if missing:
            return f'{missing[0]} is not installed: scripts/pkgdep.sh test'
        try:
            subprocess.run(['/usr/bin/python3', '-c', 'import rados'], check=True,
                           stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            return 'python3-rados is not installed: scripts/pkgdep.sh test'
        return None

    def control(self, command, timeout=60):
        done = subprocess.run([str(HERE / 'cluster.sh'), command, self.dir], env=self.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=timeout)
        if done.returncode:
            raise AssertionError(f'cluster.sh {command}: {done.stderr}')

    def start(self):
        self.control('start')
        return self

    def destroy(self):
        self.control('destroy')

    def kill_osd(self):
        self.control('kill-osd')

    def start_osd(self):
        self.control('start-osd')

    def kill_mon(self):
        self.control('kill-mon')

    def start_mon(self):
        self.control('start-mon')

    def keyring(self, user):
        return f'{self.dir}/keyring.{user}'

    def key(self, user):
        with open(self.keyring(user)) as f:
            return re.search(r'key = (\S+)', f.read()).group(1)

    def monitors(self):
        with open(self.conf) as f:
            return re.search(r'mon_host = (\S+)', f.read()).group(1)

    def run(self, *args, timeout=30, check=True):
        """A Ceph command; its output. Never waits for ever: Ceph's tools do."""
        cmd = [str(a) for a in args]
        done = subprocess.run([cmd[0], '-c', self.conf] + cmd[1:], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f'{" ".join(cmd)}: {done.returncode} {done.stderr}')
        return done.stdout

    def rbd(self, *args, **kw):
        return self.run('rbd', *args, **kw)

    def ceph(self, *args, **kw):
        return self.run('ceph', *args, **kw)

    def rados(self, *args, **kw):
        return self.run('rados', *args, **kw)

    def used(self, image):
        """Bytes that `rbd du` says the image occupies."""
        text = self.rbd('du', '--format', 'json', f'{POOL}/{image}')
        return sum(i['used_size'] for i in json.loads(text)['images'])

    def objects(self, image):
        """How many objects hold its data."""
        info = json.loads(self.rbd('info', '--format', 'json', f'{POOL}/{image}'))
        prefix = info['block_name_prefix']
        return sum(line.startswith(prefix) for line in self.rados('-p', POOL, 'ls').split())


class Foreign:
    """Another client of the cluster, in a process of its own: holds an image's exclusive lock."""

    CODE = '''
import rados, rbd, sys
conf, pool, image, mode = sys.argv[1:5]
cluster = rados.Rados(conffile=conf, name='client.admin')
cluster.connect()
ioctx = cluster.open_ioctx(pool)
disk = rbd.Image(ioctx, image)
if mode == 'hold':
    disk.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
disk.write(b'foreign!' * 64, 0)
print('ready', flush=True)
for line in sys.stdin:
    disk.write(b'foreign!' * 64, 0)
    print('written', flush=True)
disk.close()
'''

    def __init__(self, cluster, image, mode='hold'):
        self.proc = subprocess.Popen(
            ['/usr/bin/python3', '-c', self.CODE, cluster.conf, POOL, image, mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=spindle._die_with_parent)
        self.expect('ready')

    def expect(self, word):
        got = self.proc.stdout.readline().strip()
        if got != word:
            raise AssertionError(f'the other client said {got!r}: {self.proc.stderr.read()}')

    def write(self):
        """It still is the owner of the image and can write."""
        self.proc.stdin.write('\n')
        self.proc.stdin.flush()
        self.expect('written')

    def release(self):
        """Close the image, as a client should."""
        self.proc.stdin.close()
        self.proc.wait()

    def end(self):
        self.proc.kill()
        self.proc.wait()
        for f in (self.proc.stdin, self.proc.stdout, self.proc.stderr):
            f.close()


class Load(threading.Thread):
    """Random 4 KiB reads and writes of a disk, many in flight, each read checked.

    errors counts bad status bytes, mismatches lists what differed; a write that failed leaves
    either content. gap is the longest time without a completion. One thread owns the front end.
    """

    BLOCK = 4096

    def __init__(self, fe, blocks=512, depth=8, seed=1, pause=0.0):
        super().__init__(daemon=True)
        self.fe, self.blocks, self.depth, self.pause = fe, blocks, depth, pause
        self.rng = random.Random(seed)
        self.base = fe.alloc(self.BLOCK * depth, 4096)
        self.version = [{0} for _ in range(blocks)]
        self.errors, self.mismatches, self.done, self.gap = 0, [], 0, 0.0
        self.last = time.monotonic()
        self.halt = threading.Event()
        self.give_up = 0.0
        self.failure = None

    def content(self, block, version):
        if not version:
            return bytes(self.BLOCK)
        return (block << 32 | version).to_bytes(8, 'little') * (self.BLOCK // 8)

    def run(self):
        try:
            self.loop()
        except Exception as e:          # noqa: BLE001 - the test reports it
            self.failure = e

    def loop(self):
        q, free, busy, count = self.fe.q[0], list(range(self.depth)), {}, 1
        while busy or not self.halt.is_set():
            kicked = False
            while free and not self.halt.is_set():
                block = self.rng.randrange(self.blocks)
                if any(b == block for b, _ in busy.values()):
                    break
                slot = free.pop()
                gpa = self.base + slot * self.BLOCK
                write = self.rng.random() < 0.6
                if write:
                    count += 1
                    self.fe.mem_write(gpa, self.content(block, count))
                busy[slot] = block, count if write else None
                q.submit(F.T_OUT if write else F.T_IN, block * 8, [(gpa, self.BLOCK)],
                         how=F.HOW_NO_KICK, cookie=slot)
                kicked = True
            try:
                if kicked:
                    q.kick()
                for c in q.wait(0.1):
                    self.check(c, *busy.pop(c.cookie))
                    free.append(c.cookie)
            except TimeoutError:
                pass
            except OSError:
                # The target is gone.
                self.remember(busy)
                raise
            if self.halt.is_set() and time.monotonic() > self.give_up:
                break
            if self.pause:
                time.sleep(self.pause)
        self.remember(busy)

    def remember(self, busy):
        """What never came back may have been written or not."""
        for block, version in busy.values():
            if version:
                self.version[block] |= {version}
        self.lost = len(busy)

    def check(self, c, block, version):
        now = time.monotonic()
        self.gap, self.last, self.done = max(self.gap, now - self.last), now, self.done + 1
        if version:
            if c.status == F.S_OK:
                self.version[block] = {version}
            else:
                self.version[block] = self.version[block] | {version}
        if c.status != F.S_OK:
            self.errors += 1
            # Errors come at once: do not spin on them.
            time.sleep(0.002)
        elif version is None:
            got = self.fe.mem_read(self.base + c.cookie * self.BLOCK, self.BLOCK)
            if not any(got == self.content(block, v) for v in self.version[block]):
                self.mismatches.append((block, got[:8], self.version[block]))

    def verify(self, fe, timeout=20.0):
        """Every block, on any front end, is what was last written."""
        for block, versions in enumerate(self.version):
            got = fe.read(block * 8, self.BLOCK, timeout=timeout * SLOW)
            if not any(got == self.content(block, v) for v in versions):
                raise AssertionError(f'block {block}: {got[:8]} is none of {versions}')

    def wait_progress(self, seconds, more=50):
        goal = self.done + more
        spindle.wait_until(lambda: self.done >= goal or self.failure, seconds,
                           'the disk to go on')

    def stop(self, crashed=False):
        """crashed: neither the target nor its requests are expected to be there still."""
        self.give_up = time.monotonic() + (0.5 if crashed else 10 * SLOW)
        self.halt.set()
        self.join(30 * SLOW)
        if self.failure and not crashed:
            raise self.failure


class Neighbour:
    """Another disk's guest: one 4 KiB request at a time, in a process of its own."""

    def __init__(self, path):
        self.proc = subprocess.Popen([sys.executable, __file__, 'neighbour', path],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                     preexec_fn=spindle._die_with_parent)
        assert self.proc.stdout.readline() == 'ready\n'

    def take(self):
        """Its figures since the last take: count, p50, p99 and max in microseconds, bad."""
        self.proc.stdin.write('\n')
        self.proc.stdin.flush()
        return collections.namedtuple('Figures', 'count p50 p99 max bad')(
            *json.loads(self.proc.stdout.readline()))

    def stop(self):
        self.proc.stdin.close()
        self.proc.stdout.close()
        self.proc.kill()
        self.proc.wait()


def _neighbour(path):
    import select
    with F.Frontend.connect(path, timeout=60.0) as fe:
        print('ready', flush=True)
        took, bad, n = [], 0, 0
        while True:
            if select.select([0], [], [], 0.002)[0]:
                if not sys.stdin.readline():
                    return
                took.sort()
                at = [took[int(len(took) * p)] if took else 0 for p in (0.5, 0.99)]
                print(json.dumps([len(took), *(round(v * 1e6) for v in
                                               (*at, took[-1] if took else 0)), bad]), flush=True)
                took, bad = [], 0
            n += 1
            data = n.to_bytes(8, 'little') * 512
            began = time.perf_counter()
            fe.write(n % 64 * 8, data, timeout=60.0)
            back = fe.read(n % 64 * 8, 4096, timeout=60.0)
            took.append(time.perf_counter() - began)
            bad += back != data


class CephCase(VhostCase):
    """Tests on a cluster of their class."""

    store = 'memstore'
    user = 'spindle'
    timeout = 90

    # A random mix of requests, checked; see test_blk_data.
    rounds = 16 // SLOW
    mix, one = blk_data.Mix.mix, blk_data.Mix.one
    segments, how = blk_data.Mix.segments, blk_data.Mix.how

    @classmethod
    def setUpClass(cls):
        reason = Cluster.available()
        if reason:
            raise unittest.SkipTest(reason)
        cls.cluster = Cluster(cls.store)
        cls.addClassCleanup(cls.cluster.destroy)
        cls.cluster.start()

    def image(self, name, mib=64, *args):
        self.cluster.rbd('create', '--size', f'{mib}M', f'{POOL}/{name}', *args)
        return name

    def access(self, user=None):
        user = user or self.user
        return {'user_id': user, 'config_file': self.cluster.conf,
                'key_file': self.cluster.keyring(user)}

    def create(self, t, image, **params):
        """bdev_rbd_create as the RBD user; its name."""
        for key, value in self.access().items():
            params.setdefault(key, value)
        params.setdefault('pool_name', POOL)
        params.setdefault('block_size', 512)
        return t.rpc('bdev_rbd_create', rbd_name=image,
                     **{k: v for k, v in params.items() if v is not None})

    def disk(self, t, image, ctrlr='c0', **params):
        """The image as a controller's disk; its socket."""
        return self.ctrlr(t, ctrlr, self.create(t, image, **params))

    def health(self, t, name='Ceph0'):
        return t.rpc('bdev_get_bdevs', name=name)[0]['driver_specific']['rbd']

    def notes(self, t, name='Ceph0'):
        """The types of events about that bdev, in order."""
        return [e['type'] for e in t.rpc('notify_get_notifications') if e['ctx'] == name]

    def load(self, path, **kw):
        """Load on the disk behind that socket; stopped, and looked at, when the test ends."""
        fe = F.Frontend.connect(path, timeout=10.0 * SLOW, queue_size=128)
        self.addCleanup(fe.destroy)
        load = Load(fe, **kw)
        load.start()
        self.addCleanup(lambda: load.is_alive() and load.stop())
        return load

    def neighbour(self, t, name='n0'):
        """Load on a malloc disk of the same target."""
        n = Neighbour(self.ctrlr(t, 'c.' + name, self.malloc(t, name)))
        self.addCleanup(n.stop)
        return n

    def clean(self, load, errors=False):
        load.stop()
        self.assertEqual(load.mismatches, [])
        if not errors:
            self.assertEqual(load.errors, 0)
        self.assertEqual(load.lost, 0)
        return load

    def answers(self, t, limit=0.5):
        """Every call that asks something answers at once; the slowest, in seconds."""
        worst = 0.0
        for method in ('bdev_get_bdevs', 'vhost_get_controllers', 'bdev_get_iostat',
                       'framework_get_config', 'spdk_get_version', 'framework_get_reactors'):
            began = time.monotonic()
            if method == 'framework_get_config':
                t.rpc(method, name='bdev')
            else:
                t.rpc(method)
            worst = max(worst, time.monotonic() - began)
        self.assertLess(worst, limit * SLOW)
        return worst

    def at_once(self, what, call, limit=1.5):
        """The call returns within the limit; how long it took."""
        began = time.monotonic()
        call()
        took = time.monotonic() - began
        self.note(f'{what}: {took:.2f} s')
        self.assertLess(took, limit * SLOW, what)
        return took

    def note(self, text):
        print(f'     {self.id().split(".")[-1]}: {text}', flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['neighbour']:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The test ends the target first at times.
        with contextlib.suppress(OSError):
            _neighbour(sys.argv[2])
