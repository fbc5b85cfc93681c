#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""RBD images as disks on a healthy cluster: the methods, their errors, data, sizes, locks."""
import errno
import json
import os
import re
import shutil
import struct
import threading
import time

from ceph import CephCase, F, Foreign, MIB, POOL, SLOW, WAIT, pattern, spindle

SECTOR = 512


class Private(spindle.Target):
    """A target that has a directory of ours as its /etc/ceph."""

    def command(self):
        return [spindle.need_tool('unshare'), '-m', 'sh', '-c',
                'mount --bind "$0" /etc/ceph && exec "$@"', self.etc] + super().command()


class Methods(CephCase):
    def test_operators_session(self):
        """As the guide has it: everything from /etc/ceph, which this target sees as its own."""
        self.image('testimage', 128)
        etc = self.temp_dir()
        with open(etc + '/ceph.conf', 'w') as f:
            f.write(f'[global]\nmon_host = {self.cluster.monitors()}\n')
        shutil.copy(self.cluster.keyring('admin'), etc + '/ceph.client.admin.keyring')
        t = Private('0x3')
        t.etc = etc
        self.addCleanup(self._end_target, t)
        t.start()
        self.session(t)

    def test_session_with_config_file(self):
        """The same where there is no /etc/ceph/ceph.conf."""
        self.image('testimage2', 128)
        self.session(self.target('0x3'), 'testimage2', '--config-file', self.cluster.conf)

    def session(self, t, image='testimage', *more):
        out = t.cli('bdev_rbd_create', POOL, image, 512, *more).stdout
        self.assertEqual(out.strip(), 'Ceph0')
        refused = t.cli('vhost_create_blk_controller', '--cpumask', '0x4', 'vhost.2', 'Ceph0',
                        check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn('cpumask 0x4 is invalid (core mask is 0x3)', refused.stdout + refused.stderr)
        t.cli('vhost_create_blk_controller', '--cpumask', '0x1', 'vhost.1', 'Ceph0')
        fe = self.connect(t.path('vhost.1'))
        self.assertEqual(fe.capacity, 128 * MIB // SECTOR)
        # Volatile writes are for those who ask for them.
        self.assertEqual(fe.config[32], 0)
        self.check_io(fe)
        shown = json.loads(t.cli('bdev_get_bdevs').stdout)[0]
        self.assertEqual(shown['product_name'], 'Ceph Rbd Disk')
        self.assertEqual(shown['driver_specific']['rbd']['pool_name'], POOL)
        self.assertEqual(shown['driver_specific']['rbd']['rbd_name'], image)
        t.cli('bdev_rbd_resize', 'Ceph0', 160)
        self.assertEqual(t.rpc('bdev_get_bdevs')[0]['num_blocks'], 160 * 2048)
        t.cli('bdev_rbd_delete', 'Ceph0')
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        self.assertEqual(t.cli('bdev_rbd_create', POOL, image, 4096, '-b', 'again', '--cache',
                               'none', '--exclusive', *more).stdout.strip(), 'again')

    def test_every_parameter(self):
        self.image('all')
        uuid = '12345678-1234-1234-1234-123456789abc'
        t = self.target()
        name = self.create(t, 'all', name='disk', uuid=uuid, block_size=4096, cache='writethrough',
                           exclusive=True, timeout=20, config={'rbd_op_threads': '2'})
        self.assertEqual(name, 'disk')
        shown = t.rpc('bdev_get_bdevs', name='disk')[0]
        self.assertEqual((shown['uuid'], shown['block_size'], shown['num_blocks']),
                         (uuid, 4096, 64 * MIB // 4096))
        self.assertEqual(shown['driver_specific']['rbd']['config'], {'rbd_op_threads': '2'})
        fe = self.connect(self.ctrlr(t, 'c0', 'disk'))
        self.check_io(fe)
        self.check_fails(F.S_IOERR, fe.read, 1, 512)
        self.rpc_fails(t, -errno.EEXIST, 'bdev_rbd_create', None, pool_name=POOL, rbd_name='all',
                       block_size=512, name='disk', **self.access())

    def test_geometry_follows_the_image(self):
        self.image('g', 64, '--object-size', '1M')
        self.image('s', 64, '--object-size', '1M', '--stripe-unit', '64K', '--stripe-count', '4')
        t = self.target()
        for image, optimal in (('g', MIB), ('s', 256 << 10)):
            fe = self.connect(self.disk(t, image, 'c' + image))
            # virtio_blk_config: topology at 24, discard at 36.
            exp, offset, min_io, opt_io = struct.unpack_from('<BBHI', fe.config, 24)
            self.assertEqual(opt_io * SECTOR, optimal)
            granularity = struct.unpack_from('<I', fe.config, 44)[0]
            self.assertEqual(granularity * SECTOR, 64 << 10)

    def test_namespace_snapshot_clone(self):
        self.cluster.rbd('namespace', 'create', f'{POOL}/tenant')
        self.image('tenant/own', 16)
        self.image('golden', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'own', 'cn', namespace='tenant', name='own'))
        self.check_io(fe, seed=7)
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_create', "'own'", pool_name=POOL,
                       rbd_name='own', block_size=512, **self.access())

        gold = pattern(MIB, 3)
        self.connect(self.disk(t, 'golden', 'cg', name='golden')).write(0, gold)
        t.rpc('vhost_delete_controller', ctrlr='cg')
        t.rpc('bdev_rbd_delete', name='golden')
        self.cluster.rbd('snap', 'create', f'{POOL}/golden@v1')
        self.cluster.rbd('snap', 'protect', f'{POOL}/golden@v1')
        fe = self.connect(self.disk(t, 'golden', 'cs', snapshot='v1', name='snap'))
        self.assertTrue(fe.has_feature(F.F_RO))
        self.assertEqual(fe.read(0, MIB), gold)
        self.check_fails(F.S_IOERR, fe.write, 0, b'x' * 512)
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_create', '@v2', pool_name=POOL,
                       rbd_name='golden', snapshot='v2', block_size=512, **self.access())

        self.cluster.rbd('clone', f'{POOL}/golden@v1', f'{POOL}/clone')
        self.assertEqual(self.cluster.objects('clone'), 0)
        fe = self.connect(self.disk(t, 'clone', 'cc', name='clone'))
        self.assertEqual(fe.read(0, MIB), gold)
        fe.write(8, b'\xee' * 4096)
        self.assertEqual(fe.read(0, MIB), gold[:4096] + b'\xee' * 4096 + gold[8192:])
        fe.flush()
        self.assertEqual(self.cluster.objects('clone'), 1)

    def test_no_configuration_file(self):
        """Options can say it all; ones for limits as well."""
        self.image('bare', 16)
        t = self.target()
        path = self.disk(t, 'bare', config_file=None, config={
            'mon_host': self.cluster.monitors(), 'rbd_qos_iops_limit': '100'})
        load = self.load(path)
        load.wait_progress(20, 150)
        done, began = load.done, time.monotonic()
        time.sleep(2)
        rate = (load.done - done) / (time.monotonic() - began)
        self.note(f'{rate:.0f} IOPS with a limit of 100')
        self.assertLess(rate, 150)
        self.clean(load)

    def test_flatten_under_load(self):
        self.image('parent', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'parent', 'cp', name='parent'))
        fe.write(8192, pattern(MIB, 5))
        fe.flush()
        t.rpc('bdev_rbd_delete', name='parent')
        for command in ('create', 'protect'):
            self.cluster.rbd('snap', command, f'{POOL}/parent@s')
        self.cluster.rbd('clone', f'{POOL}/parent@s', f'{POOL}/child')
        load = self.load(self.disk(t, 'child'))
        load.wait_progress(10, 50)
        self.cluster.rbd('flatten', '--no-progress', f'{POOL}/child')
        self.cluster.rbd('snap', 'unprotect', f'{POOL}/parent@s')
        self.cluster.rbd('snap', 'rm', '--no-progress', f'{POOL}/parent@s')
        load.wait_progress(10)
        self.clean(load)
        load.verify(load.fe)
        self.assertEqual(load.fe.read(8192, MIB), pattern(MIB, 5))

    def test_read_only(self):
        self.image('ro')
        t = self.target()
        fe = self.connect(self.disk(t, 'ro', read_only=True))
        self.assertTrue(fe.has_feature(F.F_RO))
        self.check_fails(F.S_IOERR, fe.write, 0, b'x' * 512)
        fe.read(0, 4096)

    def test_cache_modes(self):
        """What each mode tells the guest: FLUSH always, and whether writes are volatile."""
        t = self.target()
        for mode, wce in (('none', 0), ('writethrough', 0), ('writeback', 1)):
            self.image('cache-' + mode)
            fe = self.connect(self.disk(t, 'cache-' + mode, 'c' + mode, cache=mode,
                                        name=mode))
            with self.subTest(mode):
                self.assertTrue(fe.has_feature(F.F_FLUSH))
                self.assertEqual(fe.config[32], wce, 'the config space\'s wce')
                self.check_io(fe)
                fe.flush()
                self.assertEqual(fe.read(0, 4096), pattern(4096, 1))
                self.assertEqual(self.health(t, mode)['cache'], mode)

    def test_guest_switches_its_cache(self):
        """CONFIG_WCE: with the cache off for the guest, a write is durable when it is done."""
        self.image('wce')
        t = self.target()
        fe = self.connect(self.disk(t, 'wce', cache='writeback'))
        self.assertTrue(fe.has_feature(F.F_CONFIG_WCE))
        fe.set_config(32, b'\0')
        self.assertEqual(fe.get_config(32, 1), b'\0')
        data = os.urandom(MIB)
        fe.write(0, data)
        t.kill()
        t.start()
        fe = self.connect(self.disk(t, 'wce', read_only=True))
        self.assertEqual(fe.read(0, MIB), data)

    def test_qemu_names(self):
        odd = 'a:b=c d'
        self.image(odd, 16)
        self.cluster.rbd('snap', 'create', f'{POOL}/{odd}@s')
        t = self.target()
        conf = f':id=spindle:conf={self.cluster.conf}:keyring={self.cluster.keyring("spindle")}'

        def uri(text, **params):
            return t.rpc('bdev_rbd_create', uri=text, block_size=512, **params)

        self.assertEqual(uri(f'rbd:{POOL}/a\\:b\\=c d{conf}'), 'Ceph0')
        self.check_io(self.connect(self.ctrlr(t, 'c0', 'Ceph0')))
        self.assertEqual(uri(f'rbd:{POOL}/a\\:b\\=c d@s{conf}:rbd_cache=false', name='s'), 's')
        shown = self.health(t, 's')
        self.assertEqual((shown['rbd_name'], shown['snapshot'], shown['user_id']),
                         (odd, 's', 'spindle'))
        self.assertEqual(shown['config']['rbd_cache'], 'false')
        hosts = self.cluster.monitors().replace(':', '\\:')
        self.assertEqual(uri(f'rbd:{POOL}/a\\:b\\=c d:id=admin:mon_host={hosts}'
                             f':key={self.cluster.key("admin")}', name='k'), 'k')
        for bad in ('rbd:', 'rbd:pool', 'rbd:/x', 'rbd:p/', 'nbd:p/i', f'rbd:{POOL}/x:key',
                    f'rbd:{POOL}/x:=1'):
            self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_create', None, uri=bad, block_size=512)
        self.rpc_fails(t, -32602, 'bdev_rbd_create', 'uri', uri=f'rbd:{POOL}/x', pool_name=POOL,
                       rbd_name='x', block_size=512)

    def test_registered_clusters(self):
        self.image('r1', 16)
        self.image('r2', 16)
        t = self.target()
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_get_clusters_info')
        got = t.rpc('bdev_rbd_register_cluster', name='east', core_mask='0x1',
                    config_param={'rbd_cache': 'false'}, **self.access())
        self.assertEqual(got, 'east')
        self.rpc_fails(t, -errno.EEXIST, 'bdev_rbd_register_cluster', 'east', name='east',
                       **self.access())
        shown = t.rpc('bdev_rbd_get_clusters_info')
        self.assertEqual([c['cluster_name'] for c in shown], ['east'])
        self.assertEqual(shown[0], t.rpc('bdev_rbd_get_clusters_info', name='east'))
        self.assertEqual(shown[0]['config_param'], {'rbd_cache': 'false'})
        for image in ('r1', 'r2'):
            t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name=image, block_size=512,
                  cluster_name='east', name=image)
        self.check_io(self.connect(self.ctrlr(t, 'c0', 'r1')))
        self.rpc_fails(t, -errno.EBUSY, 'bdev_rbd_unregister_cluster', '2 images', name='east')
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_create', 'west', pool_name=POOL, rbd_name='r1',
                       block_size=512, cluster_name='west')
        for image in ('r1', 'r2'):
            t.rpc('bdev_rbd_delete', name=image)
        spindle.wait_until(lambda: self.unregistered(t), 10, 'the cluster to be free')
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_unregister_cluster', None, name='east')
        self.rpc_fails(t, -errno.EACCES, 'bdev_rbd_register_cluster', None, name='bad',
                       **dict(self.access(), user_id='nobody'))
        self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_get_clusters_info')

    def unregistered(self, t):
        """Deletes are answered before their end; true once nothing uses it."""
        try:
            return t.rpc('bdev_rbd_unregister_cluster', name='east')
        except spindle.RpcError as e:
            self.assertEqual(e.code, -errno.EBUSY)
            return False

    def test_config_round_trip_and_secrets(self):
        self.image('saved', 16)
        self.image('saved2', 16)
        key = self.cluster.key('spindle')
        t = self.target()
        t.rpc('bdev_rbd_register_cluster', name='east', **self.access())
        self.create(t, 'saved', name='one', cache='writeback', block_size=4096,
                    config={'rbd_op_threads': '2'})
        t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name='saved2', block_size=512, name='two',
              cluster_name='east', read_only=True)
        self.ctrlr(t, 'c0', 'one')
        # A key given in clear works, is neither shown nor saved nor logged.
        t.rpc('bdev_rbd_create', pool_name=POOL, rbd_name='saved2', block_size=512, name='three',
              user_id='spindle', config_file=self.cluster.conf, config={'key': key},
              read_only=True)
        with t.raw() as raw:
            seen = json.dumps([raw.call(m) for m in ('bdev_get_bdevs', 'framework_get_config',
                                                     'bdev_rbd_get_clusters_info')
                               if m != 'framework_get_config']
                              + [raw.call('framework_get_config', {'name': 'bdev'})])
        self.assertNotIn(key, seen)
        self.assertIn(self.cluster.keyring('spindle'), seen)
        self.assertNotIn(key, t.log())
        t.rpc('bdev_rbd_delete', name='three')
        config = t.cli('save_config').stdout
        before = t.rpc('bdev_get_bdevs')
        self.assertNotIn(key, config)
        t.stop()
        t.start()
        t.cli('load_config', input=config)

        def stable(bdevs):
            return [{k: v for k, v in b.items() if k != 'uuid'} for b in bdevs]

        def quiet(text):
            return re.sub(r'"oldest_inflight_us": \d+', '', json.dumps(text))

        self.assertEqual(quiet(stable(t.rpc('bdev_get_bdevs'))), quiet(stable(before)))
        self.assertEqual(t.cli('save_config').stdout, config)
        self.check_io(self.connect(t.path('c0')))


class Errors(CephCase):
    """Each failure has its own number and says why."""

    def refused(self, t, number, text, **params):
        params = {'pool_name': POOL, 'rbd_name': 'here', 'block_size': 512,
                  **self.access(), **params}
        params = {k: v for k, v in params.items() if v is not None}
        began = time.monotonic()
        e = self.rpc_fails(t, -number, 'bdev_rbd_create', text, **params)
        self.assertLess(time.monotonic() - began, 5 * SLOW)
        self.note(f'{errno.errorcode[number]}: {e.data}')

    def test_reasons(self):
        self.image('here', 16)
        t = self.target()
        self.refused(t, errno.ENOENT, "pool 'nopool'", pool_name='nopool')
        self.refused(t, errno.ENOENT, "image 'noimage'", rbd_name='noimage')
        self.refused(t, errno.ENOENT, "image 'here", namespace='nowhere')
        self.refused(t, errno.EACCES, 'client.nobody', user_id='nobody')
        wrong = self.temp_dir() + '/keyring'
        with open(wrong, 'w') as f:
            f.write('[client.spindle]\n\tkey = AQDFYbFm0000ABAAkQ4nq0000000000000000w==\n')
        self.refused(t, errno.EACCES, 'client.spindle', key_file=wrong)
        self.refused(t, errno.EPERM, "here", **self.access('other'))
        self.refused(t, errno.ENOENT, '/no/ceph.conf', config_file='/no/ceph.conf')
        self.refused(t, errno.ENOENT, 'no_such_option', config={'no_such_option': '1'})
        self.refused(t, errno.EINVAL, 'io_timeout', io_timeout=5, cache='writeback')
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        # None of them left anything that would hinder the good one.
        self.assertEqual(self.create(t, 'here'), 'Ceph0')

    def test_missing_key_file(self):
        self.image('here2', 16)
        t = self.target()
        e = self.rpc_fails(t, -errno.ENOENT, 'bdev_rbd_create', '/no/keyring', pool_name=POOL,
                           rbd_name='here2', block_size=512,
                           **dict(self.access(), key_file='/no/keyring'))
        self.note(e.data)

    def test_key_in_clear(self):
        """A mistyped key in `config`, and no file at all: refused, and told to nobody."""
        t = self.target()
        secret = 'AQD1234567890'
        e = self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_create', None, pool_name=POOL,
                           rbd_name='x', block_size=512, config_file='',
                           config={'mon_host': self.cluster.monitors(), 'key': secret})
        self.assertNotIn(secret, str(e))
        self.assertNotIn(secret, t.log())
        # What the libraries have to say comes through our log.
        self.assertIn('ceph: ', t.log())

    def test_parameters(self):
        t = self.target()
        self.rpc_fails(t, -32602, 'bdev_rbd_create', 'rbd_name', pool_name=POOL, block_size=512)
        self.rpc_fails(t, -32602, 'bdev_rbd_create', 'pool_name', rbd_name='x', block_size=512)
        self.rpc_fails(t, -32602, 'bdev_rbd_create', 'block_size', pool_name=POOL, rbd_name='x')
        self.rpc_fails(t, -32602, 'bdev_rbd_create', 'cache', pool_name=POOL, rbd_name='x',
                       block_size=512, cache='sometimes')
        self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_create', None, pool_name='', rbd_name='x',
                       block_size=512)
        for size in (1, 513, 1 << 20):
            self.image(f'bs{size}', 16)
            self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_create', None, pool_name=POOL,
                           rbd_name=f'bs{size}', block_size=size, **self.access())
        self.rpc_fails(t, -errno.ENODEV, 'bdev_rbd_delete', None, name='nothing')
        self.rpc_fails(t, -errno.ENODEV, 'bdev_rbd_resize', None, name='nothing', new_size=1)
        self.malloc(t)
        self.rpc_fails(t, -errno.ENODEV, 'bdev_rbd_delete', None, name='m0')
        self.rpc_fails(t, -errno.ENODEV, 'bdev_rbd_resize', None, name='m0', new_size=1)

    def test_unreachable_monitor(self):
        """-ETIMEDOUT after its own timeout, with the address; everything else goes on."""
        self.image('near', 16)
        t = self.target()
        path = self.disk(t, 'near')
        load = self.load(path)
        neighbour = self.neighbour(t)
        neighbour.take()
        began = time.monotonic()
        with t.raw() as raw:
            raw.send({'jsonrpc': '2.0', 'id': 1, 'method': 'bdev_rbd_create', 'params': {
                'pool_name': POOL, 'rbd_name': 'far', 'block_size': 512, 'timeout': 2,
                'config': {'mon_host': 'v2:127.0.0.1:9/0'}, **self.access()}})
            worst = 0.0
            while time.monotonic() - began < 1.5:
                worst = max(worst, self.answers(t))
            answer = raw.recv(10)['error']
        took = time.monotonic() - began
        figures = neighbour.take()
        self.note(f'answered after {took:.2f} s: {answer["data"]}; other calls {worst:.3f} s, '
                  f'neighbour p99 {figures.p99} us, max {figures.max} us')
        self.assertEqual(answer['code'], -errno.ETIMEDOUT)
        self.assertIn('127.0.0.1:9', answer['data'])
        self.assertLess(took, 2 + 1.5 * SLOW)
        self.assertEqual(figures.bad, 0)
        self.clean(load)
        self.note(f'SIGTERM with the connection attempt under way: {t.stop():.2f} s')


class Data(CephCase):
    # Discards of any size read back as zeroes, which the model of the mix wants.
    exact = {'rbd_skip_partial_discard': 'false'}

    def random_mix(self, image, seed, mask='0x1', target_args=(), front=None, **params):
        self.image(image, 4)
        t = self.target(mask, *target_args)
        fe = self.connect(self.disk(t, image, config=self.exact, **params), queue_size=256,
                          **(front or {'indirect': True}))
        model = self.mix(fe, 4 * MIB // SECTOR, seed=seed,
                         block=params.get('block_size', 512) // 512)
        fe.flush(timeout=WAIT)
        fe.close()
        t.rpc('vhost_delete_controller', ctrlr='c0')
        t.rpc('bdev_rbd_delete', name='Ceph0')
        out = self.temp_dir() + '/out'
        self.cluster.rbd('export', '--no-progress', f'{POOL}/{image}', out)
        with open(out, 'rb') as f:
            self.assertEqual(f.read(), bytes(model.data))

    def test_mix_no_cache(self):
        self.random_mix('mix1', 11, cache='none')

    def test_mix_writeback(self):
        self.random_mix('mix2', 12, cache='writeback')

    def test_mix_writethrough_two_reactors(self):
        self.random_mix('mix3', 13, '0x3', cache='writethrough',
                        front={'queues': 2, 'event_idx': True})

    def test_mix_sleeping_4k(self):
        self.random_mix('mix4', 14, '0x1', ('--interrupt-mode',), cache='none', block_size=4096)

    def test_discard_frees_objects(self):
        self.image('d', 64)
        t = self.target()
        fe = self.connect(self.disk(t, 'd'))
        for at in range(0, 32, 4):
            fe.write(at * 2048, os.urandom(4 * MIB), timeout=20.0 * SLOW)
        self.assertEqual((self.cluster.objects('d'), self.cluster.used('d')), (8, 32 * MIB))
        fe.discard([(0, 16 * 2048)], timeout=10.0 * SLOW)
        self.assertEqual((self.cluster.objects('d'), self.cluster.used('d')), (4, 16 * MIB))
        self.assertEqual(fe.read(0, MIB), bytes(MIB))
        # Less than the granularity: nothing happens, and that is no error.
        fe.discard([(16 * 2048, 8)])
        fe.write_zeroes([(16 * 2048, 8 * 2048, F.UNMAP)], timeout=10.0 * SLOW)
        self.assertEqual(self.cluster.objects('d'), 2)
        self.assertEqual(fe.read(16 * 2048, MIB), bytes(MIB))

    def test_write_zeroes_keeps_space(self):
        self.image('z', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'z'))
        fe.write(0, os.urandom(4 * MIB), timeout=20.0 * SLOW)
        fe.write_zeroes([(0, 8 * 2048)], timeout=10.0 * SLOW)
        self.assertEqual(fe.read(0, MIB), bytes(MIB))
        self.assertEqual(self.cluster.objects('z'), 2)
        fe.write(0, b'\x77' * MIB)
        fe.write_zeroes([(8, 8), (64, 1)])
        self.assertEqual(fe.read(0, 64 << 10), (b'\x77' * 4096 + bytes(4096)
                                                + b'\x77' * (24 << 10) + bytes(512)
                                                + b'\x77' * 65536)[:64 << 10])

    def test_ends_of_the_image(self):
        """librbd would clip a write across the end without a word."""
        self.image('e', 1)
        t = self.target()
        fe = self.connect(self.disk(t, 'e'))
        fe.write(2047, b'e' * 512)
        for sector, length in ((2047, 1024), (2048, 512), (1 << 40, 512), ((1 << 55) - 1, 4096)):
            with self.subTest(sector=sector):
                self.check_fails(F.S_IOERR, fe.write, sector, b'x' * length)
                self.check_fails(F.S_IOERR, fe.read, sector, length)
                self.check_fails(F.S_IOERR, fe.discard, [(sector, length // 512)])
        self.assertEqual(fe.read(2047, 512), b'e' * 512)
        # A size that is no multiple of the blocks: the odd end is not offered.
        self.cluster.rbd('resize', '--no-progress', f'{POOL}/e', '--size', '3000001B')
        fe.wait_config_change(1, WAIT)
        spindle.wait_until(lambda: self.sectors(fe) == 5859, 5, 'the size in whole sectors')

    def sectors(self, fe):
        return int.from_bytes(fe.get_config(0, 8), 'little')


class Sizes(CephCase):
    def sectors(self, fe):
        return int.from_bytes(fe.get_config(0, 8), 'little')

    def test_resize_on_the_cluster(self):
        self.image('w', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'w'))
        self.check_io(fe, sector=64)
        began = time.monotonic()
        self.cluster.rbd('resize', '--no-progress', f'{POOL}/w', '--size', '32M')
        fe.wait_config_change(1, WAIT)
        spindle.wait_until(lambda: self.sectors(fe) == 32 * 2048, 5, 'the new size')
        self.note(f'the guest knows after {time.monotonic() - began:.2f} s, rbd itself included')
        self.check_io(fe, sector=31 * 2048)
        self.assertEqual(t.rpc('bdev_get_bdevs')[0]['num_blocks'], 32 * 2048)
        self.cluster.rbd('resize', '--no-progress', '--allow-shrink', f'{POOL}/w', '--size', '8M')
        spindle.wait_until(lambda: self.sectors(fe) == 8 * 2048, 5, 'the shrunk size')
        t.wait_log('shrunk')
        self.check_fails(F.S_IOERR, fe.read, 31 * 2048, 4096)
        self.check_io(fe, sector=2048)

    def test_resize_by_us(self):
        self.image('u', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'u'))
        self.assertTrue(t.rpc('bdev_rbd_resize', name='Ceph0', new_size=24))
        self.assertEqual(self.sectors(fe), 24 * 2048)
        fe.wait_config_change(1, WAIT)
        self.check_io(fe, sector=23 * 2048)
        self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_resize', 'allow_shrink', name='Ceph0',
                       new_size=16)
        self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_resize', None, name='Ceph0', new_size=0,
                       allow_shrink=True)
        self.rpc_fails(t, -errno.EINVAL, 'bdev_rbd_resize', None, name='Ceph0', new_size=1 << 50)
        self.assertEqual(self.sectors(fe), 24 * 2048)
        t.rpc('bdev_rbd_resize', name='Ceph0', new_size=16, allow_shrink=True)
        self.assertEqual(self.sectors(fe), 16 * 2048)
        self.assertIn('16 MiB', self.cluster.rbd('info', f'{POOL}/u'))

    def test_resize_under_load(self):
        self.image('l', 16)
        t = self.target()
        load = self.load(self.disk(t, 'l'))
        for size in range(17, 25):
            t.rpc('bdev_rbd_resize', name='Ceph0', new_size=size)
            self.cluster.rbd('snap', 'create', '--no-progress', f'{POOL}/l@{size}')
        load.wait_progress(10)
        self.clean(load)
        self.assertEqual(t.rpc('bdev_get_bdevs')[0]['num_blocks'], 24 * 2048)


class Locks(CephCase):
    def test_exclusive_refuses_to_fight(self):
        self.image('x', 16)
        other = Foreign(self.cluster, 'x')
        self.addCleanup(other.end)
        t = self.target()
        began = time.monotonic()
        e = self.rpc_fails(t, -errno.EBUSY, 'bdev_rbd_create', 'locked', pool_name=POOL,
                           rbd_name='x', block_size=512, exclusive=True, **self.access())
        self.note(f'{time.monotonic() - began:.2f} s: {e.data}')
        other.write()

    def test_plain_open_beside_an_exclusive_owner(self):
        """It may read at once; the owner keeps its lock, and our writes fail in the end."""
        self.image('b', 16)
        other = Foreign(self.cluster, 'b')
        self.addCleanup(other.end)
        t = self.target()
        began = time.monotonic()
        path = self.disk(t, 'b')
        self.note(f'created in {time.monotonic() - began:.2f} s')
        self.assertLess(time.monotonic() - began, 2 * SLOW)
        fe = self.connect(path)
        self.assertEqual(fe.read(0, 512), b'foreign!' * 64)
        other.write()
        began = time.monotonic()
        with self.assertRaises(F.BlkError):
            fe.write(8, b'x' * 512, timeout=30.0 * SLOW)
        self.note(f'a write of ours fails after {time.monotonic() - began:.1f} s')
        other.write()
        other.release()
        self.at_once('bdev_rbd_delete', lambda: t.rpc('bdev_rbd_delete', name='Ceph0'))

    def test_writes_outlast_an_exclusive_owner(self):
        """One that goes soon (a tool that keeps the lock for a moment) costs no error."""
        self.image('o', 16)
        other = Foreign(self.cluster, 'o')
        self.addCleanup(other.end)
        t = self.target()
        fe = self.connect(self.disk(t, 'o'))
        other.write()
        ends = threading.Timer(1.0, other.release)
        ends.start()
        fe.write(8, b'x' * 512, timeout=30.0)
        ends.join()
        self.assertEqual(fe.read(8, 512), b'x' * 512)

    def test_exclusive_is_kept(self):
        self.image('k', 16)
        a, b = self.target(), self.target()
        path = self.disk(a, 'k', exclusive=True)
        fe = self.connect(path)
        self.check_io(fe)
        self.rpc_fails(b, -errno.EBUSY, 'bdev_rbd_create', 'locked', pool_name=POOL,
                       rbd_name='k', block_size=512, exclusive=True, **self.access())
        self.check_io(fe, seed=2)
        a.rpc('vhost_delete_controller', ctrlr='c0')
        a.rpc('bdev_rbd_delete', name='Ceph0')
        self.assertEqual(self.create(b, 'k', exclusive=True), 'Ceph0')

    def test_two_targets_pass_the_lock(self):
        self.image('p', 16)
        fes = [self.connect(self.disk(self.target(), 'p')) for _ in range(2)]
        for i in range(4):
            data = pattern(4096, 100 + i)
            fes[i % 2].write(i * 8, data, timeout=10.0 * SLOW)
            fes[i % 2].flush()
            self.assertEqual(fes[1 - i % 2].read(i * 8, 4096, timeout=10.0 * SLOW), data)

    def crash(self, image, **params):
        """kill -9 under writes, start again, open again; seconds to the open and first write."""
        self.image(image, 16)
        t = self.target()
        load = self.load(self.disk(t, image, **params))
        load.wait_progress(10, 200)
        t.kill()
        load.stop(crashed=True)
        t.start()
        began = time.monotonic()
        path = self.disk(t, image, **params)
        opened = time.monotonic() - began
        fe = self.connect(path)
        fe.write(0, b'alive' + bytes(507), timeout=40.0)
        took = time.monotonic() - began
        self.note(f'open {opened:.2f} s, first write done {took:.2f} s after the create')
        self.assertLess(took, 2 * SLOW)
        self.assertIn('dead predecessor', t.log())

    def test_own_stale_lock(self):
        self.crash('c1')

    def test_own_stale_lock_exclusive(self):
        self.crash('c2', exclusive=True)

    def test_live_owner_is_never_broken(self):
        """Our mark is there, but the owner is somebody else, alive: hands off."""
        self.image('live', 16)
        t = self.target()
        fe = self.connect(self.disk(t, 'live'))
        fe.write(0, b'x' * 512)
        t.kill()
        # Its mark is in the image; the lock goes to the other client once the watch is gone.
        self.cluster.ceph('osd', 'blocklist', 'add', self.owner('live'))
        other = Foreign(self.cluster, 'live')
        self.addCleanup(other.end)
        t.start()
        self.rpc_fails(t, -errno.EBUSY, 'bdev_rbd_create', 'locked', pool_name=POOL,
                       rbd_name='live', block_size=512, exclusive=True, **self.access())
        other.write()
        self.assertNotIn('predecessor', t.log())

    def owner(self, image):
        locks = json.loads(self.cluster.rbd('lock', 'ls', '--format', 'json', f'{POOL}/{image}'))
        return locks[0]['address']


if __name__ == '__main__':
    spindle.run_tests()
