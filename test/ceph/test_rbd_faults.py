#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What clusters do: daemons die, images vanish, clients are fenced, pools fill up. Under load
whose data are checked, beside another disk and other calls, which must not notice."""
import errno
import json
import os
import signal
import time

from ceph import CephCase, F, POOL, SLOW, spindle


class FaultCase(CephCase):
    store = 'bluestore'
    timeout = 150

    def setUp(self):
        # Whatever the last test left: both daemons run.
        self.cluster.start()

    def watched(self, seconds, t):
        """Other calls answer all that time; the slowest of them."""
        end, worst = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            worst = max(worst, self.answers(t))
            time.sleep(0.2)
        return worst

    def quiet(self, neighbour, seconds=1):
        """Figures of the neighbour while all is well."""
        neighbour.take()
        time.sleep(seconds)
        return neighbour.take()

    def undisturbed(self, neighbour, quiet, what):
        """Compares with the quiet figures; wide limits, since this machine has others on it."""
        now = neighbour.take()
        self.note(f'{what}: neighbour p50/p99/max {now.p50}/{now.p99}/{now.max} us over '
                  f'{now.count} requests, quiet {quiet.p50}/{quiet.p99}/{quiet.max} us')
        self.assertEqual(now.bad, 0)
        self.assertGreater(now.count, 100 / SLOW)
        self.assertLess(now.p99, max(4 * quiet.p99, 20000) * SLOW)

    def terminate(self, t, limit=7.0):
        """SIGTERM with requests that cannot end: it leaves all the same."""
        began = time.monotonic()
        t.client and t.client.close()
        t.client = None
        t.send_signal(signal.SIGTERM)
        status = t.wait(limit)
        self.note(f'SIGTERM: exit status {status} after {time.monotonic() - began:.2f} s')
        self.assertIn(status, (0, 1))

    def address(self, image):
        """Of the client that has the image open."""
        status = json.loads(self.cluster.rbd('status', '--format', 'json', f'{POOL}/{image}'))
        return status['watchers'][0]['address']

    def ratios(self, near, back, full):
        for what, ratio in sorted((('nearfull', near), ('backfillfull', back), ('full', full)),
                                  reverse=full > 0.5):
            self.cluster.ceph('osd', f'set-{what}-ratio', ratio)


class OsdDown(FaultCase):
    def down_and_back(self, seconds):
        name = f'osd{seconds}'
        self.image(name)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, name)), self.neighbour(t)
        load.wait_progress(10, 500)
        quiet = self.quiet(neighbour)
        self.assertFalse(self.health(t)['stalled'])
        self.assertEqual(self.notes(t), ['bdev_register'])
        began = time.monotonic()
        self.cluster.kill_osd()
        worst = self.watched(seconds - 1, t)
        health = self.health(t)
        self.assertTrue(health['stalled'])
        self.assertGreater(health['oldest_inflight_us'], (seconds - 3) * 1e6)
        t.wait_log('stalled')
        self.assertEqual(self.notes(t), ['bdev_register', 'bdev_stalled'])
        while time.monotonic() - began < seconds:
            time.sleep(0.1)
        self.undisturbed(neighbour, quiet, f'OSD down {seconds} s')
        self.cluster.start_osd()
        load.wait_progress(60, 500)
        t.wait_log('recovered', 10)
        self.assertFalse(self.health(t)['stalled'])
        self.assertEqual(self.notes(t)[:3],
                         ['bdev_register', 'bdev_stalled', 'bdev_recovered'])
        self.clean(load)
        load.verify(load.fe)
        self.note(f'{load.done} requests, no error, longest gap {load.gap:.1f} s; '
                  f'slowest call meanwhile {worst * 1e3:.0f} ms')

    def test_10_seconds(self):
        self.down_and_back(10)

    def test_30_seconds(self):
        self.down_and_back(30)

    def test_everything_can_be_deleted(self):
        """With requests stuck: bdevs, controllers, guests go at once; creates time out."""
        t = self.target('0x3', '--poll-us', '100')
        loads = {}
        for image in 'abc':
            self.image(image, 16)
            loads[image] = self.load(self.disk(t, image, 'c' + image, name=image), seed=ord(image))
        neighbour = self.neighbour(t)
        for load in loads.values():
            load.wait_progress(10, 100)
        quiet = self.quiet(neighbour)
        self.cluster.kill_osd()
        time.sleep(1)
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='a'))
        self.assertNotIn('a', [b['name'] for b in t.rpc('bdev_get_bdevs')])
        self.at_once('vhost_delete_controller', lambda: t.rpc('vhost_delete_controller',
                                                              ctrlr='cb'))
        self.at_once('bdev_rbd_delete of its bdev', lambda: t.rpc('bdev_rbd_delete', name='b'))
        loads['c'].stop(crashed=True)
        self.at_once('a guest that goes', loads['c'].fe.close)
        self.answers(t)
        began = time.monotonic()
        self.rpc_fails(t, -errno.ETIMEDOUT, 'bdev_rbd_create', None, pool_name=POOL, rbd_name='a',
                       block_size=512, timeout=2, **self.access())
        self.assertLess(time.monotonic() - began, 2 + 1.5 * SLOW)
        self.at_once('a controller for another disk', lambda: self.malloc_disk(t))
        self.undisturbed(neighbour, quiet, 'deletes')
        self.terminate(t)
        for load in loads.values():
            load.stop(crashed=True)
            self.assertEqual(load.mismatches, [])
        self.cluster.start_osd()
        t.start()
        for image, load in loads.items():
            fe = self.connect(self.disk(t, image, 'c' + image, name=image))
            load.verify(fe)
            self.check_io(fe, sector=8192)

    def malloc_disk(self, t):
        fe = self.connect(self.ctrlr(t, 'other', self.malloc(t, 'other')))
        self.check_io(fe)

    def test_delete_then_back(self):
        """What was deleted meanwhile is really gone afterwards: image, connection, threads."""
        self.image('gone', 16)
        t = self.target()
        threads = len(os.listdir(f'/proc/{t.pid}/task'))
        load = self.load(self.disk(t, 'gone'))
        load.wait_progress(10, 100)
        self.cluster.kill_osd()
        raw = t.raw(60)
        self.addCleanup(raw.close)
        raw.send({'jsonrpc': '2.0', 'id': 1, 'method': 'bdev_rbd_resize',
                  'params': {'name': 'Ceph0', 'new_size': 32}})
        time.sleep(0.5)
        self.answers(t)
        t.rpc('bdev_rbd_delete', name='Ceph0')
        t.rpc('vhost_delete_controller', ctrlr='c0')
        load.stop(crashed=True)
        self.cluster.start_osd()
        self.note(f'a resize under way: {raw.recv(60)}')
        spindle.wait_until(lambda: len(os.listdir(f'/proc/{t.pid}/task')) <= threads + 6, 40,
                           'the connection\'s threads to end')
        self.assertIn('Watchers: none', self.cluster.rbd('status', f'{POOL}/gone'))
        load.verify(self.connect(self.disk(t, 'gone', 'c1')))

    def test_io_timeout(self):
        """With a limit on requests they fail; afterwards the disk works again."""
        self.image('limit', 16)
        t = self.target()
        load = self.load(self.disk(t, 'limit', cache='none', io_timeout=2))
        load.wait_progress(10, 100)
        self.cluster.kill_osd()
        began = time.monotonic()
        spindle.wait_until(lambda: load.errors >= 1 or load.failure, 10, 'an error')
        took = time.monotonic() - began
        self.note(f'first error after {took:.1f} s with io_timeout 2')
        self.assertGreater(took, 1)
        self.cluster.start_osd()
        time.sleep(1)
        load.wait_progress(30, 200)
        errors = load.errors
        load.wait_progress(30, 200)
        self.assertEqual(load.errors, errors)
        self.clean(load, errors=True)
        # Closing may have to wait for a watch that timed out as well.
        self.terminate(t)


class MonDown(FaultCase):
    def test_monitor_down(self):
        """I/O goes on; what needs the monitor says so; afterwards all is well."""
        self.image('m', 16)
        self.image('m2', 16)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, 'm')), self.neighbour(t)
        load.wait_progress(10, 100)
        quiet = self.quiet(neighbour)
        self.cluster.kill_mon()
        load.gap = 0.0
        worst = self.watched(4, t)
        load.wait_progress(5, 100)
        began = time.monotonic()
        # Another user: needs a connection of its own.
        e = self.rpc_fails(t, -errno.ETIMEDOUT, 'bdev_rbd_create', None, pool_name=POOL,
                           rbd_name='m2', block_size=512, timeout=2, **self.access('admin'))
        self.note(f'create after {time.monotonic() - began:.2f} s: {e.data}')
        self.assertIn('127.0.0.1', e.data)
        self.note(f'longest gap in I/O {load.gap:.2f} s; slowest call {worst * 1e3:.0f} ms')
        self.assertLess(load.gap, 2 * SLOW)
        self.undisturbed(neighbour, quiet, 'monitor down')
        self.cluster.start_mon()
        self.create(t, 'm2', name='m2', **self.access('admin'))
        self.clean(load)

    def test_delete_and_terminate_meanwhile(self):
        self.image('md', 16)
        self.image('md2', 16)
        t = self.target()
        load = self.load(self.disk(t, 'md'))
        self.create(t, 'md2')
        load.wait_progress(10, 100)
        self.cluster.kill_mon()
        time.sleep(0.5)
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))
        load.stop(crashed=True)
        self.terminate(t)

    def test_user_deleted_under_us(self):
        """The cluster no longer knows our key: new disks are refused, the rest is unharmed."""
        keyring = self.temp_dir() + '/keyring'
        self.cluster.ceph('auth', 'get-or-create', 'client.temp', 'mon', 'profile rbd', 'osd',
                          f'profile rbd pool={POOL}', '-o', keyring)
        access = {'user_id': 'temp', 'config_file': self.cluster.conf, 'key_file': keyring}
        self.image('k', 16)
        self.image('k2', 16)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, 'k', **access)), self.neighbour(t)
        load.wait_progress(10, 100)
        quiet = self.quiet(neighbour)
        self.cluster.ceph('auth', 'del', 'client.temp')
        self.cluster.kill_mon()
        self.cluster.kill_osd()
        self.cluster.start()
        self.rpc_fails(t, -errno.EACCES, 'bdev_rbd_create', None, pool_name=POOL, rbd_name='k2',
                       block_size=512, timeout=20, config={'rbd_op_threads': '3'}, **access)
        self.watched(2, t)
        done = load.done
        time.sleep(1)
        self.note(f'the open disk {"goes on" if load.done > done else "waits"}, '
                  f'{load.errors} errors, {self.health(t)}')
        self.create(t, 'k2', name='k2')
        self.undisturbed(neighbour, quiet, 'wrong key')
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))
        load.stop(crashed=True)
        self.assertEqual(load.mismatches, [])
        self.terminate(t)


class Images(FaultCase):
    def test_moved_to_trash(self):
        """An image in use can be moved to the trash: its disk goes on."""
        self.image('t', 16)
        t = self.target()
        load = self.load(self.disk(t, 't'))
        load.wait_progress(10, 100)
        self.assertIn('watchers', self.fails('rm', '--no-progress', f'{POOL}/t'))
        self.cluster.rbd('trash', 'mv', f'{POOL}/t')
        load.wait_progress(10, 200)
        self.clean(load)
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_create', None, pool_name=POOL, rbd_name='t',
                       block_size=512, **self.access())
        t.rpc('bdev_rbd_delete', name='Ceph0')

    def fails(self, *args):
        try:
            self.cluster.rbd(*args)
        except AssertionError as e:
            return str(e)
        raise AssertionError('rbd ' + ' '.join(args) + ' succeeded')

    def test_header_gone(self):
        """By force, under load: that disk is lost, and nothing else."""
        self.image('h', 16)
        self.image('h2', 16)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, 'h')), self.neighbour(t)
        other = self.load(self.disk(t, 'h2', 'c2'), seed=3)
        load.wait_progress(10, 100)
        quiet = self.quiet(neighbour)
        info = json.loads(self.cluster.rbd('info', '--format', 'json', f'{POOL}/h'))
        ident = info['block_name_prefix'].split('.')[-1]
        self.cluster.rados('-p', POOL, 'rm', f'rbd_header.{ident}')
        self.watched(2, t)
        spindle.wait_until(lambda: load.errors or self.health(t)['stalled'], 15,
                           'the loss to be seen')
        health = self.health(t)
        self.note(f'{load.done} requests, {load.errors} errors, stalled {health["stalled"]}, '
                  f'fenced {health["fenced"]}')
        other.wait_progress(10, 100)
        self.undisturbed(neighbour, quiet, 'header gone')
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))
        load.stop(crashed=True)
        self.assertEqual(load.mismatches, [])
        self.clean(other)
        self.answers(t)
        self.terminate(t)


class Fenced(FaultCase):
    def test_blocklisted(self):
        """Errors at once, said so in bdev_get_bdevs; a new disk gets a new connection."""
        self.image('f', 16)
        self.image('f2', 16)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, 'f')), self.neighbour(t)
        load.wait_progress(10, 100)
        quiet = self.quiet(neighbour)
        began = time.monotonic()
        self.cluster.ceph('osd', 'blocklist', 'add', self.address('f'))
        spindle.wait_until(lambda: load.errors, 20, 'an error')
        self.note(f'first error {time.monotonic() - began:.1f} s after the command')
        spindle.wait_until(lambda: self.health(t)['fenced'], 5, 'fenced')
        self.watched(2, t)
        self.assertEqual(self.notes(t).count('bdev_fenced'), 1)
        self.undisturbed(neighbour, quiet, 'fenced')
        # The log does not grow with every failed request.
        self.assertLess(t.log().count('\n'), 200)
        fe = self.connect(self.disk(t, 'f2', 'c2', name='new'))
        self.check_io(fe)
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))
        load.stop(crashed=True)
        self.assertEqual(load.mismatches, [])
        began = time.monotonic()
        fe = self.connect(self.disk(t, 'f', 'c3', name='again'))
        fe.write(0, load.content(0, 0), timeout=60.0)
        self.note(f'the same image again: first write after {time.monotonic() - began:.2f} s')
        load.version[0] = {0}
        load.verify(fe)

    def test_recover_on_a_new_connection(self):
        """With nothing else open: deleting the fenced disk and making it again is the cure."""
        self.image('r', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'r'))
        self.check_io(fe)
        self.cluster.ceph('osd', 'blocklist', 'add', self.address('r'))
        self.wait_error(fe)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))
        began = time.monotonic()
        fe = self.connect(self.disk(t, 'r', 'c1'))
        self.check_io(fe, seed=2)
        self.note(f'made again, first write after {time.monotonic() - began:.2f} s')

    def wait_error(self, fe):
        def failed():
            try:
                fe.write(0, b'x' * 512, timeout=20.0)
            except F.BlkError:
                return True
            return False
        spindle.wait_until(failed, 20, 'an error')


class Full(FaultCase):
    def test_cluster_full(self):
        """Writes wait until there is room again, reads go on, nothing is lost."""
        self.image('full', 64)
        t = self.target('0x3', '--poll-us', '100')
        load, neighbour = self.load(self.disk(t, 'full')), self.neighbour(t)
        load.wait_progress(10, 500)
        quiet = self.quiet(neighbour)
        self.ratios(0.0001, 0.0002, 0.0003)
        try:
            spindle.wait_until(lambda: time.monotonic() - load.last > 2, 20, 'writes to wait')
            self.watched(4, t)
            spindle.wait_until(lambda: self.health(t)['stalled'], 10, 'stalled')
            self.undisturbed(neighbour, quiet, 'cluster full')
        finally:
            self.ratios(0.85, 0.9, 0.95)
        load.wait_progress(40, 500)
        self.clean(load)
        load.verify(load.fe)
        self.note(f'longest gap {load.gap:.1f} s, no error')


if __name__ == '__main__':
    spindle.run_tests()
