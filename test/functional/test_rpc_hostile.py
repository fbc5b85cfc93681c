#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the RPC socket that are wrong, greedy, slow or gone; and the socket itself: who may
have it, what takes its place, what it answers before the start.
"""
import json
import os
import pathlib
import resource
import select
import socket
import stat
import time

from rpccase import MIB, RpcCase, WRONG_STATE_EARLY, WRONG_STATE_LATE, request, spindle


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


if __name__ == '__main__':
    spindle.run_tests()
