#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Restarts of a target whose disks are RBD images: with the cluster there, and with it away."""
import json
import os
import time

from ceph import CephCase, F, MIB, POOL, SLOW, pattern, spindle


class RestartCase(CephCase):
    timeout = 150

    def setUp(self):
        self.cluster.start()
        self.dir = self.temp_dir()
        self.state = os.path.join(self.dir, 'state.json')

    def prepare(self, *args, mask='0x1'):
        return self.target(mask, '--interrupt-mode', '--state', self.state, *args, start=False,
                           directory=self.dir)

    def serves(self, ctrlr, seed=3, write=True):
        with F.Frontend.connect(os.path.join(self.dir, ctrlr), timeout=10.0 * SLOW) as fe:
            if write:
                fe.write(16, pattern(65536, seed))
                fe.flush()
            self.assertEqual(fe.read(16, 65536), pattern(65536, seed))

    def saved(self, t):
        calls = t.rpc('framework_get_config', name='bdev') + \
            t.rpc('framework_get_config', name='vhost_blk')
        return sorted(calls, key=json.dumps)

    def pending(self, t):
        return {p['name'] for p in t.rpc('config_get_pending')}

    def up(self, t):
        """Starts it; RPC must answer long before a cluster that is away is given up."""
        began = time.monotonic()
        t.start()
        took = time.monotonic() - began
        self.note(f'RPC answers {took:.2f} s after the start')
        self.assertLess(took, 4 * SLOW)
        return t

    def comes(self, t, what='the disks'):
        began = time.monotonic()
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 60, what)
        self.note(f'{what}: {time.monotonic() - began:.1f} s after the cluster')


class Restart(RestartCase):
    def test_kill_and_restart(self):
        """Two images, one of them locked by the target that was killed."""
        t = self.prepare().start()
        for name, more in (('r0', {}), ('r1', {'exclusive': True, 'read_only': False})):
            self.image(name)
            self.create(t, name, name=name, **more)
            t.rpc('vhost_create_blk_controller', ctrlr='c.' + name, dev_name=name)
        self.serves('c.r0', 1)
        self.serves('c.r1', 2)
        before = self.saved(t)
        for _ in range(3):
            t.kill()
            self.up(t)
            self.comes(t)
            self.assertEqual(self.saved(t), before)
            self.serves('c.r0', 1, write=False)
            self.serves('c.r1', 2, write=False)

    def test_monitor_away(self):
        t = self.prepare().start()
        for name in ('m0', 'm1'):
            self.image(name)
            self.create(t, name, name=name, timeout=5)
            t.rpc('vhost_create_blk_controller', ctrlr='c.' + name, dev_name=name)
        self.serves('c.m0')
        self.malloc(t, 'mem')
        t.rpc('vhost_create_blk_controller', ctrlr='c.mem', dev_name='mem')
        before = self.saved(t)
        t.kill()
        self.cluster.kill_mon()
        self.up(t)
        self.assertEqual(self.pending(t), {'m0', 'm1', 'c.m0', 'c.m1'})
        self.serves('c.mem')
        self.answers(t)
        with self.assertRaises(OSError):
            F.Frontend.connect(os.path.join(self.dir, 'c.m0'), timeout=1.0)
        # While its open is under way, and again after that was given up.
        t.rpc('vhost_delete_controller', ctrlr='c.m1')
        self.assertTrue(t.rpc('bdev_rbd_delete', name='m1'))
        self.rpc_fails(t, -19, 'bdev_rbd_delete', name='m1')
        t.wait_log('bdev_rbd_create of m0', 30)
        self.assertEqual(self.saved(t), [c for c in before if 'm1' not in json.dumps(c)])
        t.kill()
        self.up(t)
        self.assertEqual(self.pending(t), {'m0', 'c.m0'})
        self.cluster.start_mon()
        self.comes(t)
        self.serves('c.m0', write=False)
        self.assertEqual(self.saved(t), [c for c in before if 'm1' not in json.dumps(c)])
        self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs') if 'Ceph' in
                          b['product_name']], ['m0'])

    def test_registered_cluster_away(self):
        self.image('g0')
        t = self.prepare().start()
        t.rpc('bdev_rbd_register_cluster', name='west', **self.access())
        self.create(t, 'g0', name='g0', cluster_name='west', user_id=None, config_file=None,
                    key_file=None, timeout=5)
        t.rpc('vhost_create_blk_controller', ctrlr='c.g0', dev_name='g0')
        self.serves('c.g0')
        before = self.saved(t)
        t.kill()
        self.cluster.kill_mon()
        self.up(t)
        self.assertEqual(self.pending(t), {'west', 'g0', 'c.g0'})
        self.rpc_fails(t, -16, 'bdev_rbd_unregister_cluster', 'g0', name='west')
        self.cluster.start_mon()
        self.comes(t)
        self.serves('c.g0', write=False)
        self.assertEqual(self.saved(t), before)

    def test_deleted_while_it_opens(self):
        """The name is free once the open has ended, and what it opened is closed again."""
        self.image('d0')
        t = self.prepare().start()
        self.create(t, 'd0', name='d0', timeout=20)
        t.kill()
        self.cluster.kill_mon()
        self.up(t)
        self.assertTrue(t.rpc('config_get_pending')[0]['running'])
        self.assertTrue(t.rpc('bdev_rbd_delete', name='d0'))
        self.assertEqual(t.rpc('config_get_pending'), [])
        null = {'name': 'd0', 'num_blocks': 100, 'block_size': 512}
        self.rpc_fails(t, -17, 'bdev_null_create', 'still being deleted', **null)
        self.cluster.start_mon()

        def free():
            try:
                return t.rpc('bdev_null_create', **null)
            except spindle.RpcError as e:
                self.assertEqual(e.code, -17)
        spindle.wait_until(free, 40, 'the name', interval=0.2)
        self.assertEqual([b['product_name'] for b in t.rpc('bdev_get_bdevs')], ['Null disk'])
        with open(self.state) as f:
            self.assertNotIn('rbd_create', f.read())

    def test_image_away(self):
        """No image of that name yet: it is taken when somebody makes it."""
        self.image('i0')
        t = self.prepare().start()
        self.create(t, 'i0', name='i0')
        t.rpc('vhost_create_blk_controller', ctrlr='c.i0', dev_name='i0')
        # In order: the watch of one that was killed would keep the image for a while.
        t.stop()
        self.cluster.rbd('rm', '--no-progress', f'{POOL}/i0')
        self.up(t)
        spindle.wait_until(lambda: any(p['error'] for p in t.rpc('config_get_pending')), 20,
                           'the first try')
        self.assertIn("no image 'i0'", t.rpc('config_get_pending')[0]['error'])
        self.image('i0', 32)
        self.comes(t)
        with F.Frontend.connect(os.path.join(self.dir, 'c.i0')) as fe:
            self.assertEqual(fe.capacity, 32 * MIB // 512)

    def test_secrets_are_not_saved(self):
        """Not even while the disk is pending; it comes all the same, they are in memory."""
        self.image('s0')
        self.image('s1')
        key = self.cluster.key(self.user)
        config = {'mon_host': self.cluster.monitors(), 'key': key}
        uri = f'rbd:{POOL}/s1:id={self.user}:key={key}:mon_host=' + \
            self.cluster.monitors().replace(':', '\\:')
        calls = [{'method': 'bdev_rbd_create', 'params': {
            'name': 's0', 'pool_name': POOL, 'rbd_name': 's0', 'block_size': 512,
            'user_id': self.user, 'config': config, 'timeout': 5}},
            {'method': 'bdev_rbd_create', 'params': {'name': 's1', 'uri': uri, 'timeout': 5}}]
        path = os.path.join(self.dir, 'config.json')
        with open(path, 'w') as f:
            json.dump({'subsystems': [{'subsystem': 'bdev', 'config': calls}]}, f)
        self.cluster.kill_mon()
        t = self.up(self.prepare('-c', path))
        self.assertEqual(self.pending(t), {'s0', 's1'})
        for text in (json.dumps(self.saved(t)), json.dumps(t.rpc('config_get_pending')),
                     t.log()):
            self.assertNotIn(key, text)
        spindle.wait_until(lambda: os.path.exists(self.state), 5, 'the state file')
        with open(self.state) as f:
            text = f.read()
        self.assertNotIn(key, text)
        self.assertIn(f'rbd:{POOL}/s1:id={self.user}:mon_host', text)
        self.cluster.start_mon()
        self.comes(t)
        with open(self.state) as f:
            self.assertNotIn(key, f.read())


if __name__ == '__main__':
    spindle.run_tests()
