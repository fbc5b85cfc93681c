#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every method's parameters; saved configurations, which are calls with parameters;
scripts/rpc.py, which makes such calls of a command line.
"""
import json
import os
import pathlib

from rpccase import MIB, RpcCase, request, spindle


# Every method with its parameters: S string, B bool, U8/U32/U64/I32, L strings, a tuple: words.
# A name ending in * is required.
S, B, U8, U32, U64, I32, L, M = 'S', 'B', 'U8', 'U32', 'U64', 'I32', 'L', 'M'
MD = {'md_size': U32, 'dif_type': U32, 'dif_pi_format': U32, 'dif_is_head_of_md': B}
NAME = {'name*': S}
PARAMETERS = {
    'spdk_get_version': {},
    'rpc_get_methods': {'current': B, 'include_aliases': B},
    'spdk_kill_instance': {'sig_name*': S},
    'framework_start_init': None,
    'framework_wait_init': {},
    'framework_get_subsystems': {},
    'framework_get_config': {'name*': S, 'with_batches': B},
    'config_get_pending': {},
    'framework_get_reactors': {},
    'framework_takeover': {'version*': U32},
    'framework_set_scheduler': {
        'name*': ('static',), 'period': U64, 'load_limit': U64, 'core_limit': U64,
        'core_busy': U64, 'mappings': S},
    'framework_get_scheduler': {},
    'framework_get_governor': {},
    'framework_monitor_context_switch': {'enabled': B},
    'framework_enable_cpumask_locks': {},
    'framework_disable_cpumask_locks': {},
    'thread_get_stats': {},
    'thread_get_pollers': {},
    'thread_get_io_channels': {},
    'log_set_level': {'level*': S},
    'log_get_level': {},
    'log_set_print_level': {'level*': S},
    'log_get_print_level': {},
    'log_set_flag': {'flag*': S},
    'log_clear_flag': {'flag*': S},
    'log_get_flags': {},
    'bdev_null_create': {
        'name*': S, 'num_blocks*': U64, 'block_size*': U32, 'uuid': S,
        'physical_block_size': U32, 'preferred_write_alignment': U32,
        'preferred_write_granularity': U32, 'optimal_write_size': U32,
        'preferred_unmap_alignment': U32, 'preferred_unmap_granularity': U32, **MD},
    'bdev_null_resize': {'name*': S, 'new_size*': U64},
    'bdev_null_delete': NAME,
    'bdev_malloc_create': {
        'num_blocks*': U64, 'block_size*': U32, 'name': S, 'uuid': S, 'physical_block_size': U32,
        'optimal_io_boundary': U32, 'numa_id': I32, 'md_interleave': B, **MD},
    'bdev_malloc_delete': NAME,
    'bdev_aio_create': {
        'name*': S, 'filename*': S, 'block_size': U32, 'readonly': B, 'fallocate': B, 'uuid': S,
        'nowait': B, 'no_lock': B, 'lock_in_use': B},
    'bdev_aio_rescan': NAME,
    'bdev_aio_delete': NAME,
    'bdev_uring_create': {
        'filename*': S, 'name*': S, 'block_size': U32, 'uuid': S, 'readonly': B, 'no_lock': B,
        'lock_in_use': B},
    'bdev_uring_rescan': NAME,
    'bdev_uring_delete': NAME,
    'bdev_error_create': {'base_name*': S, 'uuid': S},
    'bdev_error_inject_error': {
        'name*': S, 'io_type*': ('read',), 'error_type*': ('failure',), 'num': U32,
        'queue_depth': U64, 'corrupt_offset': U64, 'corrupt_value': U8},
    'bdev_error_delete': NAME,
    'bdev_delay_create': {
        'base_bdev_name*': S, 'name*': S, 'avg_read_latency*': U64, 'p99_read_latency*': U64,
        'avg_write_latency*': U64, 'p99_write_latency*': U64, 'uuid': S},
    'bdev_rbd_create': {
        'pool_name': S, 'rbd_name': S, 'block_size': U32, 'name': S, 'user_id': S, 'config': M,
        'cluster_name': S, 'uuid': S, 'read_only': B, 'namespace': S, 'snapshot': S,
        'config_file': S, 'key_file': S, 'uri': S, 'cache': ('none',), 'exclusive': B,
        'timeout': U32, 'io_timeout': U32},
    'bdev_rbd_delete': NAME,
    'bdev_rbd_resize': {'name*': S, 'new_size*': U64, 'allow_shrink': B},
    'bdev_rbd_register_cluster': {
        'name*': S, 'user_id': S, 'config_param': M, 'config_file': S, 'key_file': S,
        'core_mask': S},
    'bdev_rbd_unregister_cluster': NAME,
    'bdev_rbd_get_clusters_info': {'name': S},
    'bdev_delay_update_latency': {
        'delay_bdev_name*': S, 'latency_type*': ('avg_read',), 'latency_us*': U64},
    'bdev_delay_delete': NAME,
    'bdev_get_bdevs': {'name': S, 'timeout': U64},
    'bdev_get_iostat': {'name': S, 'names': L, 'per_channel': B, 'reset_mode': ('none',)},
    'bdev_reset_iostat': {'name': S, 'mode': ('all',)},
    'vhost_create_blk_controller': {
        'ctrlr*': S, 'dev_name*': S, 'cpumask': S, 'readonly': B, 'packed_ring': B,
        'transport': S, 'writeback': B},
    'vhost_controller_attach_bdev': {'ctrlr*': S, 'dev_name*': S},
    'vhost_delete_controller': {'ctrlr*': S, 'only_unused': B},
    'vhost_controller_set_coalescing': {
        'ctrlr*': S, 'delay_base_us*': U32, 'iops_threshold*': U32},
    'vhost_get_controllers': {'name': S},
    'virtio_blk_get_transports': {'name': S},
    'virtio_blk_create_transport': NAME,
    'notify_get_types': {},
    'notify_get_notifications': {'id': U64, 'max': U64},
}
IGNORING = {
    'iobuf_set_options', 'sock_impl_set_options', 'sock_set_default_impl', 'accel_set_options',
    'accel_assign_opc', 'fsdev_set_opts', 'bdev_set_options', 'bdev_raid_set_options',
    'bdev_iscsi_set_options', 'bdev_nvme_set_options', 'bdev_nvme_set_hotplug', 'bdev_examine',
    'bdev_wait_for_examine', 'log_enable_timestamps', 'scheduler_set_options',
    'keyring_linux_set_options', 'bdev_virtio_blk_set_hotplug'}
GOOD = {S: 'x', B: True, U8: 1, U32: 1, U64: 1, I32: 1, L: ['x'], M: {'x': 'y'}}
NOT_INTEGERS = [None, True, 'x', '1', [], {}, [1], 1.5, 1e30]
WRONG = {
    M: [True, 5, 'x', [], {'x': 1}, {'x': None}, {'x': 'a\0b'}],
    S: [None, True, 5, 1.5, [], {}, ['x'], 'a\0b'],
    B: [None, 0, 1, 'true', '', [], {}, 1.0],
    U8: NOT_INTEGERS + [-1, 256],
    U32: NOT_INTEGERS + [-1, 1 << 32, -(1 << 63)],
    U64: NOT_INTEGERS + [-1, 1 << 64, -(1 << 63)],
    I32: NOT_INTEGERS + [1 << 31, -(1 << 31) - 1],
    L: [None, True, 5, 'x', {}, [5], [None], ['x', []], ['a\0b']],
}
WRONG_WORDS = [None, True, 5, [], {}, '', 'nope']


class Parameters(RpcCase):
    """No method may be left out of PARAMETERS; each refuses all that it should."""

    def setUp(self):
        self.t = self.target()
        self.c = self.t.raw()
        self.addCleanup(self.c.close)

    def refused(self, method, params, text):
        self.c.send(request(method, params))
        answer = self.c.recv()
        where = (method, params, answer)
        self.assertIn('error', answer, where)
        message = 'Invalid argument' if method.startswith('vhost_') else 'Invalid parameters'
        self.assertEqual((answer['error']['code'], answer['error']['message']),
                         (-32602, message), where)
        self.assertIn(text, answer['error']['data'], where)

    def methods(self):
        for method, parameters in PARAMETERS.items():
            if parameters is not None:
                yield method, {k.rstrip('*'): v for k, v in parameters.items()}, \
                    [k[:-1] for k in parameters if k.endswith('*')]

    def test_the_table_is_complete(self):
        self.assertEqual(set(self.t.rpc('rpc_get_methods')), set(PARAMETERS) | IGNORING)

    def test_wrong_types(self):
        count = 0
        for method, parameters, _ in self.methods():
            for name, kind in parameters.items():
                for value in WRONG_WORDS if isinstance(kind, tuple) else WRONG[kind]:
                    self.refused(method, {name: value}, f'"{name}"')
                    count += 1
        self.assertGreater(count, 800)

    def test_unknown(self):
        for method, _, _ in self.methods():
            self.refused(method, {'zzz': 1}, 'unknown parameter "zzz"')
            self.refused(method, {'': 1}, 'unknown parameter ""')

    def test_missing(self):
        for method, parameters, required in self.methods():
            for missing in required:
                given = {n: parameters[n][0] if isinstance(parameters[n], tuple)
                         else GOOD[parameters[n]] for n in required if n != missing}
                self.refused(method, given, f'missing parameter "{missing}"')

    def test_positional(self):
        for method, _, _ in self.methods():
            self.refused(method, [1], '"params" must be an object')


class Config(RpcCase):
    def build(self, t, images):
        t.rpc('bdev_null_create', name='n0', num_blocks=2048, block_size=512)
        t.rpc('bdev_malloc_create', name='m0', num_blocks=2048, block_size=4096)
        t.rpc('bdev_malloc_create', num_blocks=2048, block_size=512, physical_block_size=4096)
        t.rpc('bdev_error_create', base_name='m0')
        t.rpc('bdev_aio_create', name='a0', filename=images[0], block_size=512, readonly=False,
              fallocate=True, nowait=False)
        t.rpc('bdev_delay_create', base_bdev_name='EE_m0', name='d0', avg_read_latency=1,
              p99_read_latency=2, avg_write_latency=3, p99_write_latency=4)
        t.rpc('bdev_uring_create', name='u0', filename=images[1], block_size=4096)
        t.rpc('bdev_uring_create', name='u1', filename=images[2], readonly=True, no_lock=True)
        t.rpc('bdev_null_resize', name='n0', new_size=8)

    def controllers(self, t):
        t.rpc('vhost_create_blk_controller', ctrlr='c.b', dev_name='d0')
        t.rpc('vhost_create_blk_controller', ctrlr='c.a', dev_name='u1', cpumask='[0]',
              readonly=True)
        t.rpc('vhost_controller_set_coalescing', ctrlr='c.a', delay_base_us=5,
              iops_threshold=1000)

    def images(self):
        directory = self.temp_dir()
        paths = [os.path.join(directory, f'{i}.img') for i in range(3)]
        for path in paths:
            with open(path, 'wb') as f:
                f.truncate(4 * MIB)
        return paths

    def test_round_trip_of_bdevs(self):
        images = self.images()
        t = self.target()
        self.build(t, images)
        config = t.rpc('framework_get_config', name='bdev')
        bdevs = t.rpc('bdev_get_bdevs')
        self.assertEqual(len(config), len(bdevs))
        t.stop()
        t = self.target()
        for call in config:
            t.rpc(call['method'], **call['params'])
        self.assertEqual(t.rpc('framework_get_config', name='bdev'), config)
        self.assertEqual(t.rpc('bdev_get_bdevs'), bdevs)
        self.assertEqual(t.rpc('framework_get_config', name='bdev', with_batches=True), config)

    def test_round_trip_with_controllers(self):
        images = self.images()
        t = self.target()
        self.build(t, images)
        self.controllers(t)
        saved = {s: t.rpc('framework_get_config', name=s) for s in ('bdev', 'vhost_blk')}
        self.assertEqual([c['params']['ctrlr'] for c in saved['vhost_blk']],
                         ['c.a', 'c.a', 'c.b'])
        t.stop()
        t.start()
        for subsystem in saved.values():
            for call in subsystem:
                t.rpc(call['method'], **call['params'])
        for s in saved:
            self.assertEqual(t.rpc('framework_get_config', name=s), saved[s])

    def test_save_and_load_by_rpc_py(self):
        images = self.images()
        t = self.target()
        self.build(t, images)
        self.controllers(t)
        text = t.cli('save_config').stdout
        saved = json.loads(text)
        path = os.path.join(self.temp_dir(), 'saved.json')
        pathlib.Path(path).write_text(text)
        t.stop()
        t.start()
        t.cli('load_config', '-j', path)
        self.assertEqual(json.loads(t.cli('save_config').stdout), saved)

    def test_a_controller_without_its_bdev_is_saved_so(self):
        t = self.target()
        t.rpc('bdev_null_create', name='n0', num_blocks=2048, block_size=512)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='n0')
        t.rpc('bdev_null_delete', name='n0')
        (call,) = t.rpc('framework_get_config', name='vhost_blk')
        self.assertEqual((call['params']['ctrlr'], call['params']['dev_name']), ('c', ''))


class Cli(RpcCase):
    """scripts/rpc.py as an operator types it."""

    def test_operators_session(self):
        t = self.target()
        self.assertEqual(t.cli('bdev_malloc_create', 4, 512, '-b', 'm0').stdout, 'm0\n')
        t.cli('vhost_create_blk_controller', '--cpumask', '0x1', 'vhost.1', 'm0')
        (c,) = json.loads(t.cli('vhost_get_controllers').stdout)
        self.assertEqual(c['socket'], t.path('vhost.1'))
        t.cli('vhost_controller_set_coalescing', 'vhost.1', 10, 1000)
        t.cli('vhost_delete_controller', 'vhost.1')
        t.cli('bdev_malloc_delete', 'm0')
        self.assertEqual(json.loads(t.cli('bdev_get_bdevs').stdout), [])

    def test_bdevs(self):
        t = self.target()
        image = self.image(t)
        self.assertEqual(t.cli('bdev_null_create', 'n0', 4, 512).stdout, 'n0\n')
        t.cli('bdev_null_resize', 'n0', 8)
        self.assertEqual(t.cli('bdev_aio_create', image, 'a0', 512).stdout, 'a0\n')
        t.cli('bdev_aio_rescan', 'a0')
        t.cli('bdev_aio_delete', 'a0')
        self.assertEqual(t.cli('bdev_uring_create', image, 'u0', 512).stdout, 'u0\n')
        t.cli('bdev_uring_rescan', 'u0')
        t.cli('bdev_uring_delete', 'u0')
        t.cli('bdev_error_create', 'n0')
        t.cli('bdev_error_inject_error', 'EE_n0', 'read', 'failure', '-n', 3)
        t.cli('bdev_delay_create', '-b', 'EE_n0', '-d', 'd0', '-r', 1, '-t', 2, '-w', 3, '-n', 4)
        t.cli('bdev_delay_update_latency', 'd0', 'avg_read', 100)
        stats = json.loads(t.cli('bdev_get_iostat', '-b', 'n0').stdout)
        self.assertEqual(stats['bdevs'][0]['name'], 'n0')
        json.loads(t.cli('bdev_get_bdevs', '-b', 'd0', '-t', 100).stdout)
        t.cli('bdev_delay_delete', 'd0')
        t.cli('bdev_error_delete', 'EE_n0')
        t.cli('bdev_null_delete', 'n0')

    def test_the_rest(self):
        t = self.target()
        for command in ('spdk_get_version', 'rpc_get_methods', 'framework_get_reactors',
                        'framework_get_subsystems', 'thread_get_stats', 'thread_get_pollers',
                        'thread_get_io_channels', 'log_get_flags', 'framework_get_scheduler',
                        'framework_get_governor', 'virtio_blk_get_transports'):
            self.assertTrue(json.loads(t.cli(command).stdout) is not None, command)
        t.cli('log_set_level', 'INFO')
        self.assertIn('INFO', t.cli('log_get_level').stdout)
        t.cli('log_set_flag', 'vhost')
        t.cli('log_clear_flag', 'vhost')
        t.cli('framework_wait_init')
        t.cli('spdk_kill_instance', 'SIGTERM')
        self.assertEqual(t.wait(), 0)

    def test_errors(self):
        t = self.target()
        for command, texts in (
                (('bdev_get_bdevs', '-b', 'nope'), ('-19', 'No such device', 'nope')),
                (('vhost_delete_controller', 'nope'), ('-32602', 'No such device')),
                (('log_set_level', 'LOUD'), ('-32602', 'LOUD'))):
            done = t.cli(*command, check=False)
            self.assertEqual(done.returncode, 1, done)
            for text in ('Got JSON-RPC error response', *texts):
                self.assertIn(text, done.stdout + done.stderr)


if __name__ == '__main__':
    spindle.run_tests()
