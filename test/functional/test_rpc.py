#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The RPC socket of the real binary: wire format, framing, hostile clients, every method's
parameters, the answers SPDK's clients rely on, saved configurations, scripts/rpc.py.

Expected answers are written down here, not computed: they are the wire format.
"""
import json
import os
import pathlib
import resource
import select
import signal
import socket
import stat
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import spindle  # noqa: E402

MIB = 1 << 20
WRONG_STATE_EARLY = ('Method may only be called after framework is initialized using '
                     'framework_start_init RPC.')
WRONG_STATE_LATE = ('Method may only be called before framework is initialized. Use '
                    '--wait-for-rpc command line parameter and then issue this RPC before the '
                    'framework_start_init RPC.')


def request(method, params=None, id=1):
    r = {'jsonrpc': '2.0', 'id': id, 'method': method}
    if params is not None:
        r['params'] = params
    return r


class RpcCase(spindle.TestCase):
    def ask(self, target, data, timeout=5):
        """Sends data on a connection of its own and returns the one answer."""
        with target.raw(timeout) as c:
            c.send(data)
            return c.recv()

    def error_of(self, target, data):
        answer = self.ask(target, data)
        self.assertIn('error', answer)
        self.assertEqual(answer['jsonrpc'], '2.0')
        return answer['error']

    def check_error(self, target, method, params, code, message, data=None):
        """code and message exactly; every string of data somewhere in error.data."""
        error = self.error_of(target, request(method, params))
        self.assertEqual((error['code'], error['message']), (code, message), error)
        for text in [data] if isinstance(data, str) else data or []:
            self.assertIn(text, error.get('data', ''))
        return error

    def alive(self, target):
        self.assertEqual(target.rpc('log_get_level'), 'NOTICE')

    def image(self, target, size=4 * MIB, name='disk.img'):
        path = target.path(name)
        with open(path, 'wb') as f:
            f.truncate(size)
        return path


class Wire(RpcCase):
    """What a recorded SPDK answers, and where it is agreed that we answer better."""

    def test_version(self):
        t = self.target()
        r = t.rpc('spdk_get_version')
        self.assertEqual(sorted(r['fields']), ['major', 'minor', 'patch', 'suffix'])
        self.assertTrue(r['version'].startswith('Spindle v'))
        self.assertEqual(self.ask(t, request('spdk_get_version', id=7)),
                         {'jsonrpc': '2.0', 'id': 7, 'result': r})
        self.check_error(t, 'spdk_get_version', {'x': 1}, -32602, 'Invalid parameters', '"x"')

    def test_reactors_and_threads(self):
        t = self.target()
        r = t.rpc('framework_get_reactors')
        self.assertEqual(r['pid'], t.pid)
        self.assertGreater(r['tick_rate'], 1000000)
        (reactor,) = r['reactors']
        self.assertEqual(sorted(reactor), ['busy', 'idle', 'in_interrupt', 'irq', 'lcore',
                                           'lw_threads', 'numa_id', 'sys', 'tid', 'usr'])
        self.assertEqual(reactor['lcore'], 0)
        self.assertEqual(sorted(reactor['lw_threads'][0]), ['cpumask', 'elapsed', 'id', 'name'])
        self.assertTrue(os.path.exists(f'/proc/{t.pid}/task/{reactor["tid"]}'))
        stats = t.rpc('thread_get_stats')
        self.assertEqual([x['name'] for x in stats['threads']], ['app_thread', 'reactor_0'])
        self.assertEqual(sorted(stats['threads'][0]), [
            'active_pollers_count', 'busy', 'cpumask', 'id', 'idle', 'name',
            'paused_pollers_count', 'timed_pollers_count'])
        self.assertEqual(stats['threads'][1]['cpumask'], '1')
        pollers = t.rpc('thread_get_pollers')['threads']
        self.assertEqual(sorted(pollers[1]), ['active_pollers', 'id', 'name', 'paused_pollers',
                                              'timed_pollers'])
        channels = t.rpc('thread_get_io_channels')['threads']
        self.assertEqual(channels[0], {'name': 'app_thread', 'io_channels': []})

    def test_two_reactors(self):
        spindle.need_cores(2)
        t = self.target('0x3')
        self.assertEqual([r['lcore'] for r in t.rpc('framework_get_reactors')['reactors']], [0, 1])
        before = t.rpc('framework_get_reactors')['reactors']
        time.sleep(0.05)
        after = t.rpc('framework_get_reactors')['reactors']
        for a, b in zip(before, after):
            self.assertGreater(b['busy'] + b['idle'], a['busy'] + a['idle'])
        self.assertEqual(len(t.rpc('thread_get_stats')['threads']), 3)

    def test_subsystems_stand_behind_what_they_need(self):
        t = self.target()
        seen = set()
        for s in t.rpc('framework_get_subsystems'):
            self.assertLessEqual(set(s['depends_on']), seen)
            seen.add(s['subsystem'])
        self.assertLessEqual({'bdev', 'vhost_blk'}, seen)

    def test_null(self):
        t = self.target()
        a = {'name': 'nullA', 'num_blocks': 2048, 'block_size': 512}
        b = {**a, 'name': 'nullB'}
        create = 'bdev_null_create'
        self.assertEqual(t.rpc(create, **a), 'nullA')
        self.check_error(t, create, a, -17, 'File exists', 'nullA')
        self.check_error(t, create, {**b, 'block_size': 100}, -22, 'Invalid argument', '100')
        self.check_error(t, create, {**b, 'num_blocks': 0}, -22, 'Invalid argument')
        bad = (-32602, 'Invalid parameters')
        self.check_error(t, create, {'name': 'nullB', 'block_size': 512}, *bad,
                         'missing parameter "num_blocks"')
        self.check_error(t, create, {**b, 'num_blocks': 'x'}, *bad, ['"num_blocks"', '"x"'])
        self.check_error(t, create, {**b, 'zzz': 1}, *bad, 'unknown parameter "zzz"')
        self.check_error(t, create, None, *bad, 'missing parameter "name"')
        self.check_error(t, create, {**b, 'md_size': 8}, -22, 'Invalid argument', 'md_size')
        self.assertTrue(t.rpc('bdev_null_resize', name='nullA', new_size=2))
        self.assertEqual(t.rpc('bdev_get_bdevs', name='nullA')[0]['num_blocks'], 4096)
        self.check_error(t, 'bdev_null_resize', {'name': 'nullA', 'new_size': 1}, -22,
                         'Invalid argument')
        self.check_error(t, 'bdev_null_resize', {'name': 'nullA', 'new_size': 1 << 63}, -22,
                         'Invalid argument')
        self.check_error(t, 'bdev_null_resize', {'name': 'nope', 'new_size': 1}, -19,
                         'No such device', 'nope')
        self.check_error(t, 'bdev_null_delete', {'name': 'nope'}, -19, 'No such device', 'nope')
        self.assertTrue(t.rpc('bdev_null_delete', name='nullA'))
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])

    def test_malloc(self):
        t = self.target()
        a = {'name': 'malA', 'num_blocks': 8192, 'block_size': 512}
        create = 'bdev_malloc_create'
        self.assertEqual(t.rpc(create, **a), 'malA')
        # As SPDK's rpc.py sends it.
        self.assertEqual(t.rpc(create, num_blocks=2048, block_size=512, md_interleave=False,
                               dif_is_head_of_md=False), 'Malloc0')
        self.assertEqual(t.rpc(create, num_blocks=2048, block_size=4096), 'Malloc1')
        self.check_error(t, create, a, -17, 'File exists', 'malA')
        huge = {'name': 'malHuge', 'num_blocks': 2147483648, 'block_size': 4096}
        self.check_error(t, create, huge, -12, 'Cannot allocate memory')
        self.check_error(t, create, {**a, 'name': 'malZ', 'num_blocks': 0}, -22,
                         'Invalid argument')
        self.check_error(t, create, {**huge, 'num_blocks': (1 << 64) - 1}, -22,
                         'Invalid argument')
        self.check_error(t, 'bdev_null_delete', {'name': 'malA'}, -19, 'No such device')
        self.assertTrue(t.rpc('bdev_malloc_delete', name='malA'))

    def test_aio_and_uring(self):
        t = self.target()
        a = {'name': 'aioA', 'filename': self.image(t), 'block_size': 512}
        self.assertEqual(t.rpc('bdev_aio_create', **a), 'aioA')
        self.check_error(t, 'bdev_aio_create', a, -17, 'File exists', 'aioA')
        b = {**a, 'name': 'aioB', 'filename': '/nonexistent/file'}
        self.check_error(t, 'bdev_aio_create', b, -2, 'No such file or directory',
                         '/nonexistent/file')
        self.check_error(t, 'bdev_aio_create', {**a, 'name': 'aioB', 'block_size': 100}, -22,
                         'Invalid argument', '100')
        self.check_error(t, 'bdev_aio_delete', {'name': 'aioB'}, -19, 'No such device')
        self.check_error(t, 'bdev_malloc_delete', {'name': 'aioA'}, -19, 'No such device')
        self.check_error(t, 'bdev_uring_delete', {'name': 'aioA'}, -19, 'No such device')
        self.assertTrue(t.rpc('bdev_aio_rescan', name='aioA'))
        u = {'name': 'urA', 'filename': self.image(t, name='u.img'), 'block_size': 4096}
        self.assertEqual(t.rpc('bdev_uring_create', **u), 'urA')
        # SPDK: -32603 "Unable to create URING bdev."
        self.check_error(t, 'bdev_uring_create', {**u, 'name': 'urB', 'filename': '/nonexistent/f'},
                         -2, 'No such file or directory', '/nonexistent/f')
        info = {b['name']: b for b in t.rpc('bdev_get_bdevs')}
        self.assertEqual(info['aioA']['product_name'], 'AIO disk')
        self.assertEqual(info['aioA']['driver_specific'], {'aio': {
            'filename': a['filename'], 'block_size_override': True, 'readonly': False,
            'fallocate': False, 'nowait': False}})
        self.assertEqual(info['urA']['product_name'], 'URING bdev')
        self.assertEqual(info['urA']['driver_specific'], {'uring': {'filename': u['filename']}})
        self.assertEqual((info['urA']['block_size'], info['urA']['num_blocks']), (4096, 1024))
        os.truncate(u['filename'], 8 * MIB)
        self.assertTrue(t.rpc('bdev_uring_rescan', name='urA'))
        self.assertEqual(t.rpc('bdev_get_bdevs', name='urA')[0]['num_blocks'], 2048)
        self.assertTrue(t.rpc('bdev_aio_delete', name='aioA'))
        self.assertTrue(t.rpc('bdev_uring_delete', name='urA'))

    def test_get_bdevs(self):
        t = self.target()
        t.rpc('bdev_null_create', name='nullA', num_blocks=2048, block_size=512,
              uuid='4f7d35c6-0d0e-4aa7-b39b-ce22250838d5')
        (b,) = t.rpc('bdev_get_bdevs', name='nullA')
        self.assertEqual(list(b), [
            'name', 'aliases', 'product_name', 'block_size', 'num_blocks',
            'preferred_write_alignment', 'preferred_write_granularity', 'optimal_write_size',
            'preferred_unmap_alignment', 'preferred_unmap_granularity', 'uuid',
            'assigned_rate_limits', 'claimed', 'zoned', 'supported_io_types', 'driver_specific'])
        self.assertEqual(b['uuid'], '4f7d35c6-0d0e-4aa7-b39b-ce22250838d5')
        self.assertEqual(b['aliases'], [b['uuid']])
        self.assertEqual(b['product_name'], 'Null disk')
        self.assertEqual(len(b['supported_io_types']), 22)
        self.assertTrue(b['supported_io_types']['read'])
        self.assertEqual(t.rpc('bdev_get_bdevs', name=b['uuid']), [b])
        self.assertEqual(t.rpc('bdev_get_bdevs'), [b])
        self.check_error(t, 'bdev_get_bdevs', {'name': 'nope'}, -19, 'No such device', 'nope')

    def test_get_bdevs_waits_for_a_name(self):
        t = self.target()
        began = time.monotonic()
        self.check_error(t, 'bdev_get_bdevs', {'name': 'late', 'timeout': 300}, -19,
                         'No such device')
        self.assertGreaterEqual(time.monotonic() - began, 0.29)
        with t.raw() as c:
            c.send(request('bdev_get_bdevs', {'name': 'late', 'timeout': 20000}))
            time.sleep(0.1)
            t.rpc('bdev_null_create', name='late', num_blocks=8, block_size=512)
            self.assertEqual(c.recv()['result'][0]['name'], 'late')

    def test_error_and_delay(self):
        t = self.target()
        t.rpc('bdev_null_create', name='n0', num_blocks=2048, block_size=512)
        self.assertTrue(t.rpc('bdev_error_create', base_name='n0'))
        (b,) = t.rpc('bdev_get_bdevs', name='EE_n0')
        self.assertEqual(b['driver_specific'], {'error_disk': 'n0'})
        self.assertTrue(t.rpc('bdev_get_bdevs', name='n0')[0]['claimed'])
        for io_type in 'read', 'write', 'flush', 'unmap', 'write_zeroes', 'all', 'clear':
            for kind in 'clear', 'failure', 'pending', 'corrupt_data', 'nomem':
                self.assertTrue(t.rpc('bdev_error_inject_error', name='EE_n0', io_type=io_type,
                                      error_type=kind, num=3))
        self.check_error(t, 'bdev_error_inject_error',
                         {'name': 'n0', 'io_type': 'read', 'error_type': 'failure'}, -19,
                         'No such device')
        self.check_error(t, 'bdev_error_create', {'base_name': 'nope'}, -19, 'No such device')
        d = {'base_bdev_name': 'EE_n0', 'name': 'd0', 'avg_read_latency': 10,
             'p99_read_latency': 20, 'avg_write_latency': 30, 'p99_write_latency': 40}
        self.assertEqual(t.rpc('bdev_delay_create', **d), 'd0')
        self.assertTrue(t.rpc('bdev_delay_update_latency', delay_bdev_name='d0',
                              latency_type='p99_write', latency_us=50))
        (b,) = t.rpc('bdev_get_bdevs', name='d0')
        self.assertEqual(b['driver_specific']['delay'], {**d, 'p99_write_latency': 50})
        self.check_error(t, 'bdev_delay_update_latency',
                         {'delay_bdev_name': 'nope', 'latency_type': 'avg_read',
                          'latency_us': 1}, -19, 'No such device')
        self.assertTrue(t.rpc('bdev_delay_delete', name='d0'))
        self.assertTrue(t.rpc('bdev_error_delete', name='EE_n0'))
        self.assertTrue(t.rpc('bdev_null_delete', name='n0'))

    def test_iostat_shape(self):
        t = self.target()
        for name in 'a', 'b':
            t.rpc('bdev_null_create', name=name, num_blocks=2048, block_size=512)
        r = t.rpc('bdev_get_iostat')
        self.assertEqual(list(r), ['tick_rate', 'ticks', 'bdevs'])
        self.assertEqual([b['name'] for b in r['bdevs']], ['a', 'b'])
        self.assertEqual(list(r['bdevs'][0]), [
            'name', 'bytes_read', 'num_read_ops', 'bytes_written', 'num_write_ops',
            'bytes_unmapped', 'num_unmap_ops', 'bytes_copied', 'num_copy_ops',
            'read_latency_ticks', 'max_read_latency_ticks', 'min_read_latency_ticks',
            'write_latency_ticks', 'max_write_latency_ticks', 'min_write_latency_ticks',
            'unmap_latency_ticks', 'max_unmap_latency_ticks', 'min_unmap_latency_ticks',
            'copy_latency_ticks', 'max_copy_latency_ticks', 'min_copy_latency_ticks', 'io_error'])
        self.assertEqual(len(t.rpc('bdev_get_iostat', name='b')['bdevs']), 1)
        self.assertEqual(len(t.rpc('bdev_get_iostat', names=['b', 'a'])['bdevs']), 2)
        r = t.rpc('bdev_get_iostat', names=['a'], per_channel=True)
        self.assertEqual((r['name'], r['channels']), ('a', []))
        for mode in 'all', 'maxmin', 'none':
            t.rpc('bdev_get_iostat', reset_mode=mode)
            t.rpc('bdev_get_iostat', names=['a', 'b'], reset_mode=mode)
            self.assertTrue(t.rpc('bdev_reset_iostat', mode=mode))
            self.assertTrue(t.rpc('bdev_reset_iostat', name='a', mode=mode))
        self.check_error(t, 'bdev_get_iostat', {'names': ['a', 'nope']}, -19, 'No such device',
                         'nope')
        self.check_error(t, 'bdev_reset_iostat', {'name': 'nope'}, -19, 'No such device')
        self.check_error(t, 'bdev_get_iostat', {'per_channel': True}, -22, 'Invalid argument')

    def test_scheduler_and_the_like(self):
        t = self.target()
        self.assertEqual(t.rpc('framework_get_scheduler')['scheduler_name'], 'static')
        self.assertTrue(t.rpc('framework_set_scheduler', name='dynamic', period=500000))
        self.assertEqual(t.rpc('framework_get_scheduler'), {
            'scheduler_name': 'dynamic', 'scheduler_period': 500000, 'isolated_core_mask': '0',
            'scheduling_core': 0, 'load_limit': 20, 'core_limit': 80, 'core_busy': 95})
        self.assertEqual(t.rpc('framework_get_governor'), {})
        self.assertEqual(t.rpc('framework_monitor_context_switch'), {'enabled': False})
        self.assertEqual(t.rpc('framework_monitor_context_switch', enabled=True),
                         {'enabled': True})
        self.assertEqual(t.rpc('framework_monitor_context_switch'), {'enabled': True})
        self.assertTrue(t.rpc('framework_disable_cpumask_locks'))

    def test_log(self):
        t = self.target()
        for level in 'ERROR', 'WARNING', 'INFO', 'DEBUG', 'NOTICE':
            self.assertTrue(t.rpc('log_set_level', level=level))
            self.assertEqual(t.rpc('log_get_level'), level)
            self.assertTrue(t.rpc('log_set_print_level', level=level.lower()))
            self.assertEqual(t.rpc('log_get_print_level'), level)
        self.check_error(t, 'log_set_level', {'level': 'LOUD'}, -32602, 'invalid log level',
                         'LOUD')
        self.assertFalse(any(t.rpc('log_get_flags').values()))
        self.assertTrue(t.rpc('log_set_flag', flag='rpc'))
        self.assertTrue(t.rpc('log_get_flags')['rpc'])
        t.wait_log('log_get_flags')
        self.assertTrue(t.rpc('log_clear_flag', flag='rpc'))
        self.assertTrue(t.rpc('log_set_flag', flag='all'))
        self.assertTrue(all(t.rpc('log_get_flags').values()))
        self.assertTrue(t.rpc('log_clear_flag', flag='all'))
        self.check_error(t, 'log_set_flag', {'flag': 'nope'}, -32602, 'invalid log flag', 'nope')
        self.check_error(t, 'log_clear_flag', {'flag': ''}, -32602, 'invalid log flag')

    def test_config_errors(self):
        t = self.target()
        self.check_error(t, 'framework_get_config', {'name': 'x'}, -32602,
                         "Subsystem 'x' not found")
        for s in t.rpc('framework_get_subsystems'):
            self.assertEqual(t.rpc('framework_get_config', name=s['subsystem']), [])

    def test_methods_unknown_and_not_for_this_state(self):
        t = self.target()
        for method in 'vhost_scsi_controller_xyz', 'save_config', '', 'log_get_level\0':
            error = self.error_of(t, request(method))
            self.assertEqual((error['code'], error['message']), (-32601, 'Method not found'))
        self.check_error(t, 'framework_start_init', None, -1, WRONG_STATE_LATE)
        self.assertTrue(t.rpc('framework_wait_init'))

    def test_methods_of_saved_spdk_files(self):
        """load_config looks for these in rpc_get_methods and then calls them."""
        t = self.target()
        methods = t.rpc('rpc_get_methods')
        for method in ('iobuf_set_options', 'sock_impl_set_options', 'sock_set_default_impl',
                       'accel_set_options', 'bdev_set_options', 'bdev_nvme_set_options',
                       'bdev_wait_for_examine', 'bdev_examine', 'bdev_iscsi_set_options',
                       'bdev_nvme_set_hotplug'):
            self.assertIn(method, methods)
            self.assertIs(t.rpc(method, whatever=[1, {'x': None}]), True)
            self.check_error(t, method, [], -32602, 'Invalid parameters')

    def test_rpc_get_methods(self):
        t = self.target()
        every = t.rpc('rpc_get_methods')
        self.assertIn('framework_start_init', every)
        self.assertEqual(len(every), len(set(every)))
        self.assertNotIn('framework_start_init', t.rpc('rpc_get_methods', current=True))
        aliases = t.rpc('rpc_get_methods', include_aliases=True)
        self.assertIn('get_bdevs', aliases)
        self.assertNotIn('get_bdevs', every)
        self.assertEqual(t.rpc('get_bdevs'), [])

    def test_kill_instance(self):
        t = self.target()
        self.check_error(t, 'spdk_kill_instance', {'sig_name': 'SIGUSR9'}, -32602,
                         'Invalid parameters', 'SIGUSR9')
        self.assertTrue(t.rpc('spdk_kill_instance', sig_name='SIGTERM'))
        self.assertEqual(t.wait(), 0)
        t = self.target()
        self.assertTrue(t.rpc('spdk_kill_instance', sig_name='SIGKILL'))
        self.assertEqual(t.wait(), -signal.SIGKILL)

    def test_the_reason_is_in_the_log_once(self):
        t = self.target()
        self.check_error(t, 'bdev_aio_create', {'name': 'a', 'filename': '/nonexistent/why'}, -2,
                         'No such file or directory')
        t.wait_log('/nonexistent/why')
        self.assertEqual(t.log().count('/nonexistent/why'), 1, t.log())

    def test_a_client_cannot_flood_the_log(self):
        t = self.target()
        with t.raw() as c:
            for i in range(300):
                c.send(request('bdev_get_bdevs', {'name': 'nope'}, i))
                c.recv()
        self.assertLess(t.log().count('nope'), 100)


class Controllers(RpcCase):
    def disks(self, t):
        t.rpc('bdev_null_create', name='nullA', num_blocks=2048, block_size=512)
        t.rpc('bdev_malloc_create', name='malA', num_blocks=2048, block_size=512)

    def test_create_get_delete(self):
        t = self.target()
        self.disks(t)
        create = 'vhost_create_blk_controller'
        good = {'ctrlr': 'c.good', 'dev_name': 'nullA', 'cpumask': '0x1'}
        self.assertIs(t.rpc(create, **good), True)
        self.check_error(t, create, {'ctrlr': 'c.good', 'dev_name': 'malA'}, -32602,
                         'File exists', 'c.good')
        self.assertIs(t.rpc(create, ctrlr='c.dup', dev_name='nullA'), True)
        for params, message in (
                ({'ctrlr': 'c.nobdev', 'dev_name': 'nope'}, 'No such device'),
                ({'ctrlr': '/abs/olute', 'dev_name': 'malA'}, 'Input/output error'),
                ({'ctrlr': '', 'dev_name': 'malA'}, 'Input/output error'),
                ({'ctrlr': 'c.tr', 'dev_name': 'malA', 'transport': 'nope'}, 'Invalid argument'),
                ({'dev_name': 'malA'}, 'Invalid argument'),
                ({'ctrlr': 'c', 'dev_name': 'malA', 'zzz': 1}, 'Invalid argument')):
            error = self.check_error(t, create, params, -32602, message)
            self.assertTrue(error['data'])
        self.assertIs(t.rpc(create, ctrlr='c.ro', dev_name='malA', readonly=True,
                            packed_ring=False, transport='vhost_user_blk'), True)
        expected = {
            'ctrlr': 'c.good', 'cpumask': '0x1', 'delay_base_us': 0, 'iops_threshold': 60000,
            'socket': t.path('c.good'), 'sessions': [],
            'backend_specific': {'block': {'readonly': False, 'bdev': 'nullA',
                                           'transport': 'vhost_user_blk'}}}
        self.assertEqual(t.rpc('vhost_get_controllers', name='c.good'), [expected])
        everything = t.rpc('vhost_get_controllers')
        self.assertEqual([c['ctrlr'] for c in everything], ['c.dup', 'c.good', 'c.ro'])
        self.assertTrue(everything[2]['backend_specific']['block']['readonly'])
        self.check_error(t, 'vhost_get_controllers', {'name': 'nope'}, -32603, 'No such device',
                         'nope')
        self.assertTrue(stat.S_ISSOCK(os.stat(t.path('c.good')).st_mode))
        self.assertIs(t.rpc('bdev_null_delete', name='nullA'), True)
        (c,) = t.rpc('vhost_get_controllers', name='c.good')
        self.assertIsNone(c['backend_specific']['block']['bdev'])
        self.assertIs(t.rpc('vhost_delete_controller', ctrlr='c.good'), True)
        self.assertFalse(os.path.exists(t.path('c.good')))
        self.check_error(t, 'vhost_delete_controller', {'ctrlr': 'c.good'}, -32602,
                         'No such device')
        self.assertIs(t.rpc('vhost_delete_controller', ctrlr='c.ro'), True)

    def test_cpumask_refused(self):
        t = self.target('0x3' if len(os.sched_getaffinity(0)) > 1 else '0x1')
        mask = t.mask
        self.disks(t)
        for bad in '0x4', '0x5', '0x0', 'zzz', '', '[]', '[2]', '[0-2]', '0x', '[0', '-1':
            params = {'ctrlr': 'c.bad', 'dev_name': 'malA', 'cpumask': bad}
            self.check_error(t, 'vhost_create_blk_controller', params, -32602,
                             'Invalid argument', f'cpumask {bad} is invalid')
            self.assertEqual(t.rpc('vhost_get_controllers'), [])
            self.assertFalse(os.path.exists(t.path('c.bad')))
            self.assertFalse(t.rpc('bdev_get_bdevs', name='malA')[0]['claimed'])
        line = f'cpumask 0x4 is invalid (core mask is {mask})'
        t.wait_log(line)
        self.assertEqual(t.log().count(line), 1, t.log())

    def test_cpumask_forms(self):
        t = self.target()
        self.disks(t)
        for i, form in enumerate(('0x1', '1', '[0]', '0X1', '0x0001', '[0-0]', None)):
            params = {'ctrlr': f'c{i}', 'dev_name': 'malA'}
            if form:
                params['cpumask'] = form
            self.assertIs(t.rpc('vhost_create_blk_controller', **params), True, form)
            self.assertEqual(t.rpc('vhost_get_controllers', name=f'c{i}')[0]['cpumask'], '0x1')

    def test_default_cpumask_is_all_reactors(self):
        spindle.need_cores(2)
        t = self.target('0x3')
        self.disks(t)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='malA')
        self.assertEqual(t.rpc('vhost_get_controllers')[0]['cpumask'], '0x3')
        (call,) = t.rpc('framework_get_config', name='vhost_blk')
        self.assertEqual(call['params']['cpumask'], '0x3')

    def test_coalescing(self):
        t = self.target()
        self.disks(t)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='malA')
        setit = 'vhost_controller_set_coalescing'
        self.assertIs(t.rpc(setit, ctrlr='c', delay_base_us=50, iops_threshold=1000), True)
        (c,) = t.rpc('vhost_get_controllers')
        self.assertEqual((c['delay_base_us'], c['iops_threshold']), (50, 1000))
        for params, message in (
                ({'ctrlr': 'no', 'delay_base_us': 50, 'iops_threshold': 1000}, 'No such device'),
                ({'ctrlr': 'c', 'delay_base_us': 4000000000, 'iops_threshold': 1000},
                 'Invalid argument'),
                ({'ctrlr': 'c', 'delay_base_us': 50, 'iops_threshold': 99}, 'Invalid argument')):
            self.check_error(t, setit, params, -32602, message)

    def test_transports(self):
        t = self.target()
        self.assertEqual(t.rpc('virtio_blk_get_transports'), [{'name': 'vhost_user_blk'}])
        self.assertEqual(t.rpc('virtio_blk_get_transports', name='vhost_user_blk'),
                         [{'name': 'vhost_user_blk'}])
        self.check_error(t, 'virtio_blk_get_transports', {'name': 'x'}, -19, 'No such device')
        self.check_error(t, 'virtio_blk_create_transport', {'name': 'vhost_user_blk'}, -17,
                         'File exists')

    def test_sessions_and_iostat(self):
        import frontend
        t = self.target()
        self.disks(t)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='malA')
        with frontend.Frontend.connect(t.path('c')) as fe:
            for i in range(10):
                fe.write(i * 8, b'x' * 4096)
            for i in range(7):
                self.assertEqual(fe.read(i * 8, 4096), b'x' * 4096)
            (c,) = t.rpc('vhost_get_controllers')
            (session,) = c['sessions']
            self.assertEqual(session, {'vid': session['vid'], 'id': 0, 'name': 'cs0',
                                       'started': True, 'max_queues': 1,
                                       'inflight_task_cnt': 0})
            (b,) = t.rpc('bdev_get_iostat', names=['malA'])['bdevs']
            self.assertEqual((b['num_write_ops'], b['bytes_written']), (10, 40960))
            self.assertEqual((b['num_read_ops'], b['bytes_read']), (7, 28672))
            for what in 'read', 'write':
                low, high = b[f'min_{what}_latency_ticks'], b[f'max_{what}_latency_ticks']
                self.assertTrue(0 <= low <= high <= b[f'{what}_latency_ticks'], b)
            r = t.rpc('bdev_get_iostat', names=['malA'], per_channel=True)
            (channel,) = r['channels']
            self.assertEqual(channel['num_read_ops'], 7)
            ids = {x['id']: x['name'] for x in t.rpc('thread_get_stats')['threads']}
            self.assertEqual(ids[channel['thread_id']], 'reactor_0')
            self.assertIn({'name': 'bdev_malA', 'ref': 1},
                          t.rpc('thread_get_io_channels')['threads'][1]['io_channels'])
            t.rpc('bdev_get_iostat', names=['malA'], reset_mode='maxmin')
            (b,) = t.rpc('bdev_get_iostat', names=['malA'], reset_mode='all')['bdevs']
            self.assertEqual((b['num_read_ops'], b['max_read_latency_ticks']), (7, 0))
            (b,) = t.rpc('bdev_get_iostat', names=['malA'])['bdevs']
            self.assertEqual((b['num_read_ops'], b['bytes_written']), (0, 0))
            (other,) = t.rpc('bdev_get_iostat', names=['nullA'])['bdevs']
            self.assertEqual(other['num_read_ops'], 0)

    def test_latency_in_iostat(self):
        import frontend
        t = self.target()
        self.disks(t)
        t.rpc('bdev_delay_create', base_bdev_name='malA', name='d', avg_read_latency=3000,
              p99_read_latency=3000, avg_write_latency=0, p99_write_latency=0)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='d')
        with frontend.Frontend.connect(t.path('c')) as fe:
            for _ in range(5):
                fe.read(0, 4096)
            r = t.rpc('bdev_get_iostat', names=['d'])
            (b,) = r['bdevs']
            # A reactor reads its clock once a pass, so a little less is right as well.
            self.assertGreater(b['min_read_latency_ticks'], r['tick_rate'] * 0.003 * 0.9)
            self.assertGreaterEqual(b['max_read_latency_ticks'], b['min_read_latency_ticks'])
            self.assertGreaterEqual(b['read_latency_ticks'], b['min_read_latency_ticks'] * 5)
            self.assertEqual(b['write_latency_ticks'], 0)
            t.rpc('bdev_reset_iostat', name='d', mode='maxmin')
            (b,) = t.rpc('bdev_get_iostat', names=['d'])['bdevs']
            self.assertEqual((b['num_read_ops'], b['max_read_latency_ticks']), (5, 0))


class Framing(RpcCase):
    def test_a_byte_at_a_time(self):
        t = self.target()
        text = json.dumps(request('bdev_null_create', {
            'name': 'gr\u00fc\u00df\u20ac', 'num_blocks': 8, 'block_size': 512}),
            ensure_ascii=False).encode()
        with t.raw() as c:
            for byte in text:
                c.send(bytes([byte]))
            self.assertEqual(c.recv()['result'], 'gr\u00fc\u00df\u20ac')
            self.assertEqual(t.rpc('bdev_get_bdevs')[0]['name'], 'gr\u00fc\u00df\u20ac')

    def test_several_in_one_write(self):
        t = self.target()
        with t.raw() as c:
            for between in '', '\n', ' \r\n\t':
                c.send(between.join(json.dumps(request('log_get_level', id=i))
                                    for i in range(100)))
                for i in range(100):
                    self.assertEqual(c.recv(), {'jsonrpc': '2.0', 'id': i, 'result': 'NOTICE'})

    def test_one_and_a_half_in_one_write(self):
        t = self.target()
        text = json.dumps(request('log_get_level', id=1)) + json.dumps(
            request('log_get_level', id=2))
        with t.raw() as c:
            for cut in range(1, len(text)):
                c.send(text[:cut])
                c.send(text[cut:])
                self.assertEqual([c.recv()['id'], c.recv()['id']], [1, 2])

    def test_requests_of_one_client_run_in_order(self):
        """A pipelined request may need what the one before it makes, slow as that is."""
        t = self.target()
        with t.raw() as c:
            c.send([request('bdev_malloc_create', {'name': 'm', 'num_blocks': 65536,
                                                   'block_size': 512}),
                    request('bdev_error_create', {'base_name': 'm'}, 2)])
            self.assertEqual([a.get('result') for a in c.recv()], ['m', True])
            c.send(json.dumps(request('bdev_error_delete', {'name': 'EE_m'}, 3))
                   + json.dumps(request('bdev_malloc_delete', {'name': 'm'}, 4)))
            self.assertEqual([c.recv().get('result') for i in range(2)], [True, True])

    def test_pretty_printed(self):
        t = self.target()
        self.assertEqual(self.ask(t, json.dumps(request('log_get_level'), indent=4)),
                         {'jsonrpc': '2.0', 'id': 1, 'result': 'NOTICE'})

    def test_replies_are_one_line_each(self):
        t = self.target()
        with t.raw() as c:
            c.send(request('spdk_get_version'))
            data = b''
            while not data.endswith(b'\n'):
                data += c.sock.recv(4096)
            self.assertEqual(data.count(b'\n'), 1)
            self.assertNotIn(b' "', data)

    def test_ids(self):
        t = self.target()
        for id in 0, -5, 2 ** 53, 18446744073709551615, 'abc', '', 'q"\\\n\u20ac', None, 1.5:
            self.assertEqual(self.ask(t, request('log_get_level', id=id)),
                             {'jsonrpc': '2.0', 'id': id, 'result': 'NOTICE'})
        for id in True, [], {}, [1]:
            error = self.error_of(t, request('log_get_level', id=id))
            self.assertEqual(error['code'], -32600)

    def test_without_jsonrpc_and_with_empty_params(self):
        t = self.target()
        for extra in {}, {'params': None}, {'params': {}}:
            self.assertEqual(self.ask(t, {'id': 1, 'method': 'log_get_level', **extra})['result'],
                             'NOTICE')

    def test_notification(self):
        t = self.target()
        with t.raw() as c:
            c.send({'jsonrpc': '2.0', 'method': 'spdk_get_version'})
            self.assertTrue(c.silent())
            c.send({'method': 'bdev_null_create',
                    'params': {'name': 'quiet', 'num_blocks': 8, 'block_size': 512}})
            c.send(request('bdev_get_bdevs', {'name': 'quiet'}))
            self.assertEqual(c.recv()['result'][0]['name'], 'quiet')

    def test_batches(self):
        t = self.target()
        level = {'jsonrpc': '2.0', 'result': 'NOTICE'}
        self.assertEqual(self.ask(t, [request('log_get_level'), request('log_get_level', id='b')]),
                         [{**level, 'id': 1}, {**level, 'id': 'b'}])
        self.assertEqual(self.error_of(t, []),
                         {'code': -32600, 'message': 'Invalid request',
                          'data': 'the batch is empty'})
        answers = self.ask(t, [request('nope'), 5, {'method': 'log_get_level'},
                               request('bdev_get_bdevs', {'x': 1}, 3), [request('log_get_level')]])
        self.assertEqual([(a['id'], a['error']['code']) for a in answers],
                         [(1, -32601), (None, -32600), (3, -32602), (None, -32600)])
        with t.raw() as c:
            c.send([{'method': 'log_get_level'}] * 3)
            self.assertTrue(c.silent())
            c.send([request('log_get_level', id=i) for i in range(1024)])
            self.assertEqual([a['id'] for a in c.recv()], list(range(1024)))
        self.assertEqual(self.error_of(t, [request('log_get_level')] * 1025)['code'], -32600)

    def test_duplicates_in_a_batch_hit_their_own_request(self):
        t = self.target()
        one = json.dumps(request('bdev_get_bdevs'))
        two = '{"id":2,"method":"bdev_get_bdevs","params":{"name":"a","name":"b"}}'
        three = '{"id":3,"id":3,"method":"bdev_get_bdevs"}'
        answers = self.ask(t, f'[{one},{two},{one},{three},{one}]')
        self.assertEqual([a.get('error', {}).get('code') for a in answers],
                         [None, -32602, None, -32600, None])

    def test_wrong_requests(self):
        t = self.target()
        for wrong in ({'jsonrpc': '1.0', 'id': 1, 'method': 'bdev_get_bdevs'},
                      {'jsonrpc': 2.0, 'id': 1, 'method': 'bdev_get_bdevs'},
                      {'id': 1}, {}, {'id': 1, 'method': 5}, {'id': 1, 'method': None},
                      {'id': 1, 'method': 'log_get_level', 'extra': 1}):
            answer = self.ask(t, wrong)
            self.assertEqual((answer['id'], answer['error']['code'], answer['error']['message']),
                             (None, -32600, 'Invalid request'), wrong)
        for wrong in '5\n', '"x"', 'null\n', 'true\n':
            self.assertEqual(self.error_of(t, wrong)['code'], -32600, wrong)
        for params in [], [1], 'x', 5, True:
            self.check_error(t, 'bdev_get_bdevs', params, -32602, 'Invalid parameters')

    def test_after_an_error_the_connection_goes_on(self):
        t = self.target()
        with t.raw() as c:
            for bad in {'id': 1}, request('nope'), request('log_get_level', {'x': 1}):
                c.send(bad)
                self.assertIn('error', c.recv())
                c.send(request('log_get_level'))
                self.assertEqual(c.recv()['result'], 'NOTICE')


class Hostile(RpcCase):
    def refused_and_closed(self, t, data):
        with t.raw() as c:
            try:
                c.send(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            answer = c.recv()
            self.assertEqual((answer['id'], answer['error']['code']), (None, -32700))
            self.assertTrue(c.closed())
        self.alive(t)

    def test_not_json(self):
        t = self.target()
        for bad in ('nonsense\n', '{"id":1,,', '{"id":1}}', '}', '{"id":01,"method":"x"}',
                    "{'id':1}", '{"id":1,"method":"x",}', '{"id":1,/*c*/"method":"x"}',
                    '{"id":NaN,"method":"x"}', '{"id":Infinity,"method":"x"}',
                    b'{"id":1,"method":"\xff"}', b'{"id":1,"method":"\xc0\x80"}',
                    b'{"id":1,"method":"\xed\xa0\x80"}', b'{"id":1,"method":"a\nb"}',
                    b'{"id":1,"method":"a\0b"}', b'\0',
                    b'\x16\x03\x01\x02\x00\x01\x00', b'\xff' * 9,
                    '{"id":+1,"method":"x"}', '{"id":.5,"method":"x"}', '{"id":1.,"method":"x"}',
                    '{"id":TRUE,"method":"x"}', '{"id":"\\x","method":"x"}',
                    '{"id":"\\u12","method":"x"}', '{"a\\u0000b":1,"method":"x"}'):
            with self.subTest(bad=bad):
                if bad == '{"id":1}}':
                    with t.raw() as c:
                        c.send(bad)
                        self.assertEqual(c.recv()['error']['code'], -32600)
                        self.assertEqual(c.recv()['error']['code'], -32700)
                        self.assertTrue(c.closed())
                else:
                    self.refused_and_closed(t, bad)

    def test_good_requests_before_the_bad_one_are_answered(self):
        t = self.target()
        with t.raw() as c:
            c.send(json.dumps(request('log_get_level')) + 'garbage')
            self.assertEqual(c.recv()['result'], 'NOTICE')
            self.assertEqual(c.recv()['error']['code'], -32700)
            self.assertTrue(c.closed())

    def test_cut_json_then_hang_up(self):
        t = self.target()
        text = json.dumps(request('bdev_null_create', {'name': 'cut', 'num_blocks': 8,
                                                       'block_size': 512}))
        for cut in range(len(text)):
            with t.raw() as c:
                c.send(text[:cut])
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        with t.raw() as c:
            c.send(text[:-1])
            self.assertTrue(c.silent())
            c.send(text[-1:])
            self.assertEqual(c.recv()['result'], 'cut')

    def test_request_of_10_mb(self):
        t = self.target()
        big = json.dumps(request('bdev_get_bdevs', {'name': 'x' * (10 * 1000 * 1000)}))
        self.refused_and_closed(t, big)
        self.refused_and_closed(t, '[' + ' ' * (2 * MIB))
        self.refused_and_closed(t, '1' * (2 * MIB))
        # Just inside the limit.
        fits = json.dumps(request('bdev_get_bdevs', {'name': 'x' * (MIB - 200)}))
        self.assertEqual(self.error_of(t, fits)['code'], -19)
        # Space between requests is no request.
        with t.raw() as c:
            c.send(b' \n' * (2 * MIB))
            c.send(request('log_get_level'))
            self.assertEqual(c.recv()['result'], 'NOTICE')

    def test_deep_nesting(self):
        t = self.target()
        self.refused_and_closed(t, '[' * 100000)
        self.refused_and_closed(t, '{"a":' * 100000)
        self.refused_and_closed(t, '{"id":1,"method":"x","params":' + '[' * 100 + ']' * 100 + '}')
        deep = '{"id":1,"method":"bdev_examine","params":{"x":' + '[' * 40 + ']' * 40 + '}}'
        self.assertIs(self.ask(t, deep)['result'], True)

    def test_many_members_take_linear_time(self):
        t = self.target()
        members = ','.join(f'"k{i}":1' for i in range(80000))
        began = time.monotonic()
        error = self.error_of(t, '{"id":1,"method":"bdev_get_bdevs","params":{%s}}' % members)
        self.assertEqual(error['code'], -32602)
        self.assertLess(time.monotonic() - began, 2 * spindle.SLOW)

    def test_duplicate_parameters(self):
        t = self.target()
        for text in ('{"id":1,"method":"bdev_get_bdevs","params":{"name":"a","name":"a"}}',
                     '{"id":1,"method":"bdev_get_bdevs","params":{"name":"a","n\\u0061me":"b"}}'):
            error = self.error_of(t, text)
            self.assertEqual((error['code'], error['message']), (-32602, 'Invalid parameters'))
            self.assertIn('parameter "name" given twice', error['data'])
        deep = '{"id":1,"method":"bdev_examine","params":{"x":{"y":1,"y":2}}}'
        self.assertIn('"y" given twice', self.error_of(t, deep)['data'])

    def test_numbers_beyond_64_bits(self):
        t = self.target()
        for number in '18446744073709551616', '-9223372036854775809', '9' * 300:
            error = self.error_of(t, '{"id":1,"method":"bdev_null_create","params":{"name":"a",'
                                     '"block_size":512,"num_blocks":%s}}' % number)
            self.assertEqual(error['code'], -32602)
            self.assertIn('"num_blocks"', error['data'])
        for number in '1e400', '-1', '1.5', '1e30':
            error = self.error_of(t, '{"id":1,"method":"bdev_null_create","params":{"name":"a",'
                                     '"block_size":512,"num_blocks":%s}}' % number)
            self.assertEqual(error['code'], -32602, number)
        whole = '{"id":1,"method":"bdev_null_create","params":{"name":"a","block_size":5.12e2,' \
                '"num_blocks":8.0}}'
        self.assertEqual(self.ask(t, whole)['result'], 'a')
        self.assertEqual(self.error_of(t, '{"id":99999999999999999999,"method":"x"}')['code'],
                         -32600)

    def test_200_clients(self):
        t = self.target()
        clients = [t.raw() for _ in range(200)]
        try:
            for i, c in enumerate(clients):
                c.send(request('log_get_level', id=i))
            for i, c in reversed(list(enumerate(clients))):
                self.assertEqual(c.recv(), {'jsonrpc': '2.0', 'id': i, 'result': 'NOTICE'})
        finally:
            for c in clients:
                c.close()
        self.alive(t)

    def test_more_clients_than_are_let_in_wait(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 4096:
            self.skipTest(f'needs 4096 file descriptors, the limit is {hard}')
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        t = self.target()
        clients = [t.raw() for _ in range(1100)]
        try:
            for i in 0, 500, 1000:
                clients[i].send(request('log_get_level'))
                self.assertEqual(clients[i].recv()['result'], 'NOTICE')
            clients[1099].send(request('log_get_level'))
            self.assertTrue(clients[1099].silent())
            for c in clients[:200]:
                c.close()
            self.assertEqual(clients[1099].recv()['result'], 'NOTICE')
        finally:
            for c in clients:
                c.close()
        self.alive(t)

    def test_a_client_that_never_reads(self):
        t = self.target()
        text = json.dumps(request('rpc_get_methods', {'include_aliases': True})).encode()
        with t.raw() as c:
            c.sock.setblocking(False)
            sent = 0
            quiet = time.monotonic() + 0.5
            while time.monotonic() < quiet and sent < 64 * MIB:
                try:
                    sent += c.sock.send((text * 100)[sent % len(text):])
                    quiet = time.monotonic() + 0.5
                except BlockingIOError:
                    time.sleep(0.01)
            # It stopped reading from us: what it holds is bounded.
            self.assertLess(sent, 4 * MIB)
            with open(f'/proc/{t.pid}/status') as f:
                rss = [int(x.split()[1]) for x in f if x.startswith('VmRSS')][0]
            if not spindle.SANITIZER:
                self.assertLess(rss, 200 * 1024)
            self.alive(t)
            # And once we read, every request is answered.
            c.sock.setblocking(True)
            expected = sent // len(text)
            for _ in range(expected):
                self.assertEqual(c.recv()['id'], 1)
        self.alive(t)

    def test_hang_up_before_the_answer(self):
        t = self.target()
        big = {'num_blocks': 128 * 2048, 'block_size': 512}
        for i in range(3):
            with t.raw() as c:
                c.send(request('bdev_malloc_create', {'name': f'm{i}', **big}))
            with t.raw() as c:
                c.send(request('bdev_get_bdevs', {'name': 'never', 'timeout': 3600000}))
            with t.raw() as c:
                c.send(json.dumps(request('bdev_malloc_create', {'name': f'p{i}', **big}))[:-1])
        # What was received in full is done.
        for i in range(3):
            self.assertEqual(len(t.rpc('bdev_get_bdevs', name=f'm{i}', timeout=20000)), 1)
            self.assertTrue(t.rpc('bdev_malloc_delete', name=f'm{i}'))
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])

    def test_half_closed_client_is_answered(self):
        t = self.target()
        with t.raw() as c:
            c.send(json.dumps(request('bdev_malloc_create', {
                'name': 'm', 'num_blocks': 65536, 'block_size': 512}))
                + json.dumps(request('log_get_level', id=2)))
            c.sock.shutdown(socket.SHUT_WR)
            self.assertEqual(c.recv()['result'], 'm')
            self.assertEqual(c.recv()['result'], 'NOTICE')
            self.assertTrue(c.closed())

    def test_a_slow_call_delays_nobody_else(self):
        t = self.target()
        with t.raw() as slow, t.raw() as waiting:
            waiting.send(request('bdev_get_bdevs', {'name': 'never', 'timeout': 3600000}))
            slow.send(request('bdev_malloc_create', {'num_blocks': 512 * 2048,
                                                     'block_size': 512}))
            worst, calls = 0, 0
            while not select.select([slow.sock], [], [], 0)[0] and calls < 100000:
                began = time.monotonic()
                t.rpc('log_get_level')
                worst = max(worst, time.monotonic() - began)
                calls += 1
            self.assertEqual(slow.recv()['result'], 'Malloc0')
            self.assertGreater(calls, 10)
            self.assertLess(worst, 0.5 * spindle.SLOW)
            self.assertTrue(waiting.silent(0.05))

    def test_exit_with_calls_under_way(self):
        t = self.target()
        clients = [t.raw() for _ in range(3)]
        clients[0].send(request('bdev_get_bdevs', {'name': 'never', 'timeout': 3600000}))
        clients[1].send(request('bdev_malloc_create', {'num_blocks': 64 * 2048,
                                                       'block_size': 512}))
        clients[2].send('{"id":1,"meth')
        time.sleep(0.05)
        self.assertLess(t.stop(), 5 * spindle.SLOW)
        for c in clients:
            c.close()


class Socket(RpcCase):
    def test_mode_is_0600(self):
        old = os.umask(0)
        try:
            t = self.target()
        finally:
            os.umask(old)
        self.assertEqual(stat.S_IMODE(os.stat(t.sock).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(t.sock + '.lock').st_mode), 0o600)
        t.stop()
        self.assertFalse(os.path.exists(t.sock))
        self.assertFalse(os.path.exists(t.sock + '.lock'))

    def test_live_socket_is_refused(self):
        t = self.target()
        second = self.target(start=False, directory=t.dir, sock=t.sock)
        self.assertNotEqual(second.run_to_exit(), 0)
        self.assertIn(t.sock, second.log())
        self.alive(t)
        self.assertEqual(self.ask(t, request('log_get_level'))['result'], 'NOTICE')

    def test_stale_socket_is_replaced(self):
        t = self.target()
        t.kill()
        self.assertTrue(os.path.exists(t.sock))
        t.start()
        self.alive(t)

    def test_socket_of_another_listener_is_refused(self):
        directory = self.temp_dir()
        path = os.path.join(directory, 'x.sock')
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.bind(path)
            s.listen()
            t = self.target(start=False, directory=directory, sock=path)
            self.assertNotEqual(t.run_to_exit(), 0)
            self.assertTrue(os.path.exists(path))

    def test_other_files_are_left_alone(self):
        directory = self.temp_dir()
        path = os.path.join(directory, 'precious')
        pathlib.Path(path).write_text('data')
        t = self.target(start=False, directory=directory, sock=path)
        self.assertNotEqual(t.run_to_exit(), 0)
        self.assertEqual(pathlib.Path(path).read_text(), 'data')

    def test_path_too_long(self):
        t = self.target(start=False, sock='/tmp/' + 'x' * 120)
        self.assertNotEqual(t.run_to_exit(), 0)

    def test_rpcs_allowed(self):
        allowed = 'log_get_level,rpc_get_methods,get_bdevs'
        t = self.target('0x1', '--rpcs-allowed', allowed)
        self.assertEqual(sorted(t.rpc('rpc_get_methods')),
                         ['bdev_get_bdevs', 'log_get_level', 'rpc_get_methods'])
        self.assertEqual(t.rpc('log_get_level'), 'NOTICE')
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        self.check_error(t, 'spdk_get_version', None, -32601, 'Method not found')
        self.check_error(t, 'log_set_level', {'level': 'INFO'}, -32601, 'Method not found')
        bad = self.target('0x1', '--rpcs-allowed', 'log_get_level,nope', start=False)
        self.assertNotEqual(bad.run_to_exit(), 0)
        self.assertIn('nope', bad.log())

    def test_wait_for_rpc(self):
        t = self.target('0x1', '--wait-for-rpc')
        self.check_error(t, 'bdev_get_bdevs', None, -1, WRONG_STATE_EARLY)
        current = t.rpc('rpc_get_methods', current=True)
        self.assertIn('framework_start_init', current)
        self.assertNotIn('bdev_get_bdevs', current)
        self.assertIn('bdev_get_bdevs', t.rpc('rpc_get_methods'))
        self.assertTrue(t.rpc('bdev_set_options', bdev_io_pool_size=1))
        gone = t.raw()
        gone.send(request('framework_wait_init'))
        with t.raw() as waiter:
            waiter.send(request('framework_wait_init'))
            self.assertTrue(waiter.silent())
            gone.close()
            self.assertTrue(t.rpc('framework_start_init'))
            self.assertEqual(waiter.recv()['result'], True)
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])
        self.check_error(t, 'framework_start_init', None, -1, WRONG_STATE_LATE)

    def test_exit_while_waiting_for_init(self):
        t = self.target('0x1', '--wait-for-rpc')
        with t.raw() as waiter:
            waiter.send(request('framework_wait_init'))
            self.assertTrue(waiter.silent(0.05))
            t.stop()


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
    'framework_get_reactors': {},
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
        'nowait': B, 'no_lock': B},
    'bdev_aio_rescan': NAME,
    'bdev_aio_delete': NAME,
    'bdev_uring_create': {
        'filename*': S, 'name*': S, 'block_size': U32, 'uuid': S, 'readonly': B, 'no_lock': B},
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
        'transport': S},
    'vhost_delete_controller': {'ctrlr*': S},
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

    def test_a_controller_without_its_bdev_is_left_out(self):
        t = self.target()
        t.rpc('bdev_null_create', name='n0', num_blocks=2048, block_size=512)
        t.rpc('vhost_create_blk_controller', ctrlr='c', dev_name='n0')
        t.rpc('bdev_null_delete', name='n0')
        self.assertEqual(t.rpc('framework_get_config', name='vhost_blk'), [])


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
