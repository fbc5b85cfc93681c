#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk is taken away from under its front end, and another one is put in its place."""
import struct

from vhostcase import F, MIB, VhostCase, WAIT, spindle


class Reattach(VhostCase):
    def size_told(self, fe):
        return struct.unpack('<Q', fe.get_config(0, 8))[0] * 512

    def test_another_bdev(self):
        t = self.target('0x3')
        fe = self.connect(self.ctrlr(t, 'c0', self.malloc(t, 'm0')), queues=2)
        self.check_io(fe)
        changes = 0
        for i in range(5):
            t.rpc('bdev_malloc_delete', name=t.rpc('vhost_get_controllers', name='c0')[0][
                'backend_specific']['block']['bdev'])
            changes += 1
            fe.wait_config_change(changes, WAIT)
            self.assertEqual(self.size_told(fe), 0)
            for q in range(2):
                self.check_fails(F.S_IOERR, fe.read, 0, 512, q=q)
            mib = 16 * (i + 2)
            name = self.malloc(t, f'm{i + 1}', mib=mib)
            self.assertTrue(t.rpc('vhost_controller_attach_bdev', ctrlr='c0', dev_name=name))
            changes += 1
            fe.wait_config_change(changes, WAIT)
            self.assertEqual(self.size_told(fe), mib * MIB)
            for q in range(2):
                self.check_io(fe, q=q, sector=mib * MIB // 512 - 256, seed=i)
        # A front end that comes later finds it as well.
        self.check_io(self.connect(t.path('c0')), seed=9)

    def test_refusals(self):
        t = self.target()
        self.malloc(t, 'm0')
        self.malloc(t, 'm1')
        fe = self.connect(self.ctrlr(t, 'c0', 'm0'))
        refused = [('nope', 'm1', 'No such device'), ('c0', 'm1', 'Device or resource busy')]
        for ctrlr, dev, message in refused:
            self.rpc_fails(t, -32602, 'vhost_controller_attach_bdev', message, ctrlr=ctrlr,
                           dev_name=dev)
        t.rpc('bdev_malloc_delete', name='m0')
        self.rpc_fails(t, -32602, 'vhost_controller_attach_bdev', 'No such device', ctrlr='c0',
                       dev_name='nope')
        t.rpc('bdev_malloc_create', name='m4k', num_blocks=4096, block_size=4096)
        self.rpc_fails(t, -32602, 'vhost_controller_attach_bdev', 'Invalid argument', ctrlr='c0',
                       dev_name='m4k')
        self.check_fails(F.S_IOERR, fe.read, 0, 512)
        t.rpc('vhost_controller_attach_bdev', ctrlr='c0', dev_name='m1')
        fe.wait_config_change(2, WAIT)
        self.check_io(fe)

    def test_an_empty_controller_survives_a_restart(self):
        t = self.target()
        self.malloc(t, 'm0')
        self.ctrlr(t, 'c0', 'm0')
        t.rpc('bdev_malloc_delete', name='m0')
        config = t.rpc('framework_get_config', name='vhost_blk')
        self.assertEqual(config[0]['params']['dev_name'], '')
        other = self.target()
        for call in config:
            other.rpc(call['method'], **call['params'])
        fe = self.connect(other.path('c0'))
        self.assertEqual(self.size_told(fe), 0)
        self.malloc(other, 'm1')
        other.rpc('vhost_controller_attach_bdev', ctrlr='c0', dev_name='m1')
        fe.wait_config_change(1, WAIT)
        self.check_io(fe)

    def test_delete_only_unused(self):
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.malloc(t, 'm0')))
        self.rpc_fails(t, -32602, 'vhost_delete_controller', 'Device or resource busy',
                       ctrlr='c0', only_unused=True)
        self.check_io(fe)
        fe.destroy()
        self.wait_sessions(t, 0)
        t.rpc('vhost_delete_controller', ctrlr='c0', only_unused=True)


if __name__ == '__main__':
    spindle.run_tests()
