#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""notify_get_types and notify_get_notifications: what is recorded of bdevs, in what order, under
which ids, and how a client reads it piece by piece. Stalls are told by test/ceph."""
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'lib'))
import spindle  # noqa: E402

KEPT = 1024
MIB = 1 << 20
U64_MAX = (1 << 64) - 1


class Notify(spindle.TestCase):
    def null(self, t, name):
        t.rpc('bdev_null_create', name=name, num_blocks=2048, block_size=512)

    def many(self, t, count):
        """So many events: disks come and go, in batches."""
        with t.raw() as c:
            for at in range(0, count, 200):
                calls = []
                for i in range(at, min(at + 200, count), 2):
                    params = {'name': f'd{i // 2}', 'num_blocks': 8, 'block_size': 512}
                    calls.append({'id': i, 'method': 'bdev_null_create', 'params': params})
                    calls.append({'id': i + 1, 'method': 'bdev_null_delete',
                                  'params': {'name': params['name']}})
                c.send(calls)
                self.assertEqual([r.get('error') for r in c.recv()], [None] * len(calls))

    def events(self, t, **params):
        """(type, ctx) of each; the ids are without a gap."""
        found = t.rpc('notify_get_notifications', **params)
        for i, event in enumerate(found):
            self.assertEqual(list(event), ['type', 'ctx', 'id'])
            self.assertEqual(event['id'], found[0]['id'] + i)
        return [(event['type'], event['ctx']) for event in found]

    def ids(self, t, **params):
        return [event['id'] for event in t.rpc('notify_get_notifications', **params)]

    def test_types(self):
        t = self.target()
        types = ['bdev_register', 'bdev_unregister', 'bdev_resize', 'bdev_stalled',
                 'bdev_recovered', 'bdev_fenced']
        self.assertEqual(t.rpc('notify_get_types'), types)
        self.assertEqual(t.rpc('get_notification_types'), types)

    def test_nothing_yet(self):
        t = self.target()
        self.assertEqual(t.rpc('notify_get_notifications'), [])
        self.assertEqual(t.rpc('notify_get_notifications', id=5, max=5), [])
        self.assertEqual(t.rpc('get_notifications'), [])

    def test_first_has_id_0(self):
        t = self.target()
        self.null(t, 'n0')
        self.assertEqual(t.rpc('notify_get_notifications'),
                         [{'type': 'bdev_register', 'ctx': 'n0', 'id': 0}])

    def test_order(self):
        t = self.target()
        image = t.path('disk.img')
        with open(image, 'wb') as f:
            f.truncate(4 * MIB)
        self.null(t, 'n0')
        t.rpc('bdev_malloc_create', num_blocks=2048, block_size=512)
        t.rpc('bdev_aio_create', name='a0', filename=image)
        t.rpc('bdev_aio_rescan', name='a0')         # of the same size: no event
        os.truncate(image, 8 * MIB)
        t.rpc('bdev_aio_rescan', name='a0')
        t.rpc('bdev_null_resize', name='n0', new_size=2)
        t.rpc('bdev_null_delete', name='n0')
        t.rpc('bdev_malloc_delete', name='Malloc0')
        self.null(t, 'n0')
        self.assertEqual(self.events(t), [
            ('bdev_register', 'n0'), ('bdev_register', 'Malloc0'), ('bdev_register', 'a0'),
            ('bdev_resize', 'a0'), ('bdev_resize', 'n0'), ('bdev_unregister', 'n0'),
            ('bdev_unregister', 'Malloc0'), ('bdev_register', 'n0')])

    def test_refused_calls_leave_no_event(self):
        t = self.target()
        self.null(t, 'n0')
        for method, params in (
                ('bdev_null_create', {'name': 'n0', 'num_blocks': 8, 'block_size': 512}),
                ('bdev_null_create', {'name': 'n1', 'num_blocks': 8, 'block_size': 100}),
                ('bdev_aio_create', {'name': 'a0', 'filename': '/nonexistent/file'}),
                ('bdev_null_resize', {'name': 'n0', 'new_size': 0}),
                ('bdev_null_delete', {'name': 'nope'}),
                ('bdev_malloc_delete', {'name': 'n0'})):
            with self.assertRaises(spindle.RpcError):
                t.rpc(method, **params)
        self.assertEqual(self.events(t), [('bdev_register', 'n0')])

    def test_a_stack_is_resized_from_its_base(self):
        t = self.target()
        self.null(t, 'n0')
        t.rpc('bdev_error_create', base_name='n0')
        t.rpc('bdev_null_resize', name='n0', new_size=2)
        t.rpc('bdev_error_delete', name='EE_n0')
        t.rpc('bdev_null_delete', name='n0')
        self.assertEqual(self.events(t), [
            ('bdev_register', 'n0'), ('bdev_register', 'EE_n0'), ('bdev_resize', 'n0'),
            ('bdev_resize', 'EE_n0'), ('bdev_unregister', 'EE_n0'), ('bdev_unregister', 'n0')])

    def test_names_that_json_must_escape(self):
        t = self.target()
        names = ['quote"back\\slash', 'tab\tnewline\n', 'größe', 'x' * 255]
        for name in names:
            self.null(t, name)
        self.assertEqual(self.events(t), [('bdev_register', name) for name in names])

    def test_id_and_max(self):
        t = self.target()
        self.many(t, 10)
        self.assertEqual(self.ids(t), list(range(10)))
        self.assertEqual(self.ids(t, id=0), list(range(10)))
        self.assertEqual(self.ids(t, id=9), [9])
        self.assertEqual(self.ids(t, id=10), [])
        self.assertEqual(self.ids(t, id=U64_MAX), [])
        self.assertEqual(self.ids(t, max=3), [0, 1, 2])
        self.assertEqual(self.ids(t, max=0), [])
        self.assertEqual(self.ids(t, id=8, max=3), [8, 9])
        self.assertEqual(self.ids(t, id=4, max=U64_MAX), [4, 5, 6, 7, 8, 9])
        self.assertEqual(self.ids(t, id=U64_MAX, max=U64_MAX), [])

    def test_a_client_follows(self):
        """Asking from behind its last id it sees each event once."""
        t = self.target()
        seen, expected = [], []
        for i in range(20):
            self.null(t, f'n{i}')
            expected.append(('bdev_register', f'n{i}'))
            if i % 3 == 0:
                t.rpc('bdev_null_delete', name=f'n{i}')
                expected.append(('bdev_unregister', f'n{i}'))
            seen += self.events(t, id=len(seen), max=2)
        seen += self.events(t, id=len(seen))
        self.assertEqual(seen, expected)
        self.assertEqual(self.events(t, id=len(seen)), [])

    def test_the_oldest_make_room(self):
        t = self.target()
        self.many(t, KEPT)
        self.assertEqual(self.ids(t), list(range(KEPT)))
        self.null(t, 'one')
        self.assertEqual(self.ids(t), list(range(1, KEPT + 1)))
        t.rpc('bdev_null_delete', name='one')
        self.many(t, 2 * KEPT)
        end = 3 * KEPT + 2
        self.assertEqual(self.ids(t), list(range(end - KEPT, end)))
        # What is gone: from the oldest there is, and max counts from there.
        self.assertEqual(self.ids(t, id=5, max=3), [end - KEPT + i for i in range(3)])
        self.assertEqual(self.ids(t, id=end - KEPT, max=1), [end - KEPT])
        self.assertEqual(self.ids(t, id=end - 1), [end - 1])
        self.assertEqual(self.ids(t, id=end), [])
        self.assertEqual(self.events(t, id=end - 2),
                         [('bdev_register', f'd{KEPT - 1}'), ('bdev_unregister', f'd{KEPT - 1}')])

    def test_all_kept_with_the_longest_names(self):
        """The largest answer there can be: each byte of a name takes six."""
        t = self.target()
        name = '\1' * 255
        for _ in range(KEPT // 2):
            self.null(t, name)
            t.rpc('bdev_null_delete', name=name)
        self.assertEqual(self.events(t), [('bdev_register', name),
                                          ('bdev_unregister', name)] * (KEPT // 2))
        self.assertEqual(t.rpc('notify_get_notifications', id=KEPT), [])

    def test_begins_anew_with_the_target(self):
        t = self.target()
        self.many(t, 4)
        t.stop()
        t.start()
        self.assertEqual(t.rpc('notify_get_notifications'), [])

    def test_bad_parameters(self):
        t = self.target()
        self.null(t, 'n0')
        for params, text in (({'id': -1}, '"id" must be an integer'),
                             ({'id': '0'}, '"id" must be an integer'),
                             ({'id': U64_MAX + 1}, '"id"'),
                             ({'max': 1.5}, '"max" must be an integer'),
                             ({'max': None}, '"max" must be an integer'),
                             ({'start': 0}, 'unknown parameter "start"')):
            with self.assertRaises(spindle.RpcError) as caught:
                t.rpc('notify_get_notifications', **params)
            self.assertEqual((caught.exception.code, caught.exception.message),
                             (-32602, 'Invalid parameters'))
            self.assertIn(text, caught.exception.data)
        with self.assertRaises(spindle.RpcError) as caught:
            t.rpc('notify_get_types', id=0)
        self.assertEqual(caught.exception.code, -32602)

    def test_not_before_the_start(self):
        t = self.target('0x1', '--wait-for-rpc')
        for method in 'notify_get_types', 'notify_get_notifications':
            with self.assertRaises(spindle.RpcError) as caught:
                t.rpc(method)
            self.assertEqual(caught.exception.code, -1)
        t.rpc('framework_start_init')
        self.assertEqual(t.rpc('notify_get_notifications'), [])

    def test_cli(self):
        t = self.target()
        self.many(t, 6)
        self.assertIn('bdev_stalled', json.loads(t.cli('notify_get_types').stdout))
        self.assertEqual(json.loads(t.cli('notify_get_notifications').stdout),
                         t.rpc('notify_get_notifications'))
        self.assertEqual(json.loads(t.cli('notify_get_notifications', '-i', 3, '-n', 1).stdout),
                         [{'type': 'bdev_unregister', 'ctx': 'd1', 'id': 3}])
        self.assertEqual(json.loads(t.cli('notify_get_notifications', '--id', 5, '--max',
                                          9).stdout),
                         [{'type': 'bdev_unregister', 'ctx': 'd2', 'id': 5}])


if __name__ == '__main__':
    spindle.run_tests()
