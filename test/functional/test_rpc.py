#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The RPC socket of the real binary: wire format, framing, the answers SPDK's clients rely on.

Expected answers are written down here, not computed: they are the wire format.
"""
import json
import os
import signal
import stat
import time

from rpccase import MIB, RpcCase, WRONG_STATE_LATE, request, spindle


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
                                       'inflight_task_cnt': 0, 'waiting_queues': 0,
                                       'abandoned_task_cnt': 0})
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


if __name__ == '__main__':
    spindle.run_tests()
