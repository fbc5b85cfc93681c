#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Configurations that come back: -c, --state, kill -9 and restart, disks that are away at start."""
import json
import os
import re
import socket
import stat
import subprocess
import threading
import time

from vhostcase import F, MIB, VhostCase, pattern, spindle

WCE = 32        # offset of the writeback byte in the config


def usage():
    return subprocess.run([spindle.built('bin/vhost'), '--help'], stdout=subprocess.PIPE,
                          text=True, check=True).stdout


class RestartCase(VhostCase):
    def setUp(self):
        super().setUp()
        self.dir = self.temp_dir()
        self.state = os.path.join(self.dir, 'state.json')

    def path(self, name):
        return os.path.join(self.dir, name)

    def image(self, name='disk.img', mib=8):
        with open(self.path(name), 'wb') as f:
            f.truncate(mib * MIB)
        return self.path(name)

    def prepare(self, *args, mask='0x1', state=True):
        """A target that is not started yet; its sockets lie in our directory."""
        args = ('--interrupt-mode', *args)
        return self.target(mask, *args, *(['--state', self.state] if state else []), start=False,
                           directory=self.dir)

    def saved(self, t):
        """{subsystem: calls} as the target has it."""
        return {s: t.rpc('framework_get_config', name=s) for s in ('bdev', 'vhost_blk')}

    def in_file(self, path=None):
        with open(path or self.state) as f:
            config = json.load(f)
        return {s['subsystem']: s['config'] for s in config['subsystems']}

    def write_config(self, calls, name='config.json', text=None):
        """A file for -c; calls are (method, params)."""
        config = {'subsystems': [{'subsystem': 'bdev', 'config': [
            {'method': m, 'params': p} for m, p in calls]}]}
        with open(self.path(name), 'w') as f:
            f.write(text if text is not None else json.dumps(config))
        return self.path(name)

    def crash(self, t):
        t.kill()
        return t.start()

    def same(self, a, b):
        """The same calls; bdevs that open side by side may change places."""
        for s in a:
            key = json.dumps if s == 'vhost_blk' else lambda c: c['params'].get('uuid', '')
            self.assertEqual(sorted(a[s], key=key), sorted(b[s], key=key))

    def pending(self, t):
        return {p['name']: p for p in t.rpc('config_get_pending')
                if p['method'] != 'vhost_controller_set_coalescing'}

    def refused(self, t, text):
        """It does not start and says why."""
        self.assertEqual(t.run_to_exit(), 1)
        self.assertIn(text, t.log())
        self.assertFalse(os.path.exists(t.sock))

    def serves(self, name, seed=7):
        with F.Frontend.connect(self.path(name)) as fe:
            fe.write(8, pattern(8192, seed))
            self.assertEqual(fe.read(8, 8192), pattern(8192, seed))


class Restart(RestartCase):
    def steps(self):
        """Calls that change the configuration, each answered before the target is killed."""
        yield 'bdev_malloc_create', {'num_blocks': 4096, 'block_size': 512}
        yield 'bdev_null_create', {'name': 'n0', 'num_blocks': 100, 'block_size': 4096}
        yield 'bdev_aio_create', {'name': 'a0', 'filename': self.image('a.img')}
        yield 'bdev_uring_create', {'name': 'u0', 'filename': self.image('u.img'),
                                    'block_size': 4096}
        yield 'bdev_error_create', {'base_name': 'Malloc0'}
        yield 'bdev_delay_create', {
            'base_bdev_name': 'EE_Malloc0', 'name': 'd0', 'avg_read_latency': 1,
            'p99_read_latency': 2, 'avg_write_latency': 3, 'p99_write_latency': 4}
        yield 'vhost_create_blk_controller', {'ctrlr': 'c0', 'dev_name': 'a0', 'cpumask': '0x2'}
        yield 'vhost_create_blk_controller', {'ctrlr': 'c1', 'dev_name': 'd0', 'readonly': True}
        yield 'vhost_controller_set_coalescing', {
            'ctrlr': 'c0', 'delay_base_us': 25, 'iops_threshold': 5000}
        yield 'bdev_delay_update_latency', {
            'delay_bdev_name': 'd0', 'latency_type': 'avg_read', 'latency_us': 77}
        yield 'bdev_null_resize', {'name': 'n0', 'new_size': 4}
        yield 'vhost_delete_controller', {'ctrlr': 'c1'}
        yield 'bdev_uring_delete', {'name': 'u0'}
        yield 'bdev_null_delete', {'name': 'n0'}

    @spindle.timeout(120)
    def test_kill_after_every_answer(self):
        spindle.need_cores(2)
        t = self.prepare(mask='0x3').start()
        for method, params in self.steps():
            t.rpc(method, **params)
            before = self.saved(t)
            controllers = t.rpc('vhost_get_controllers')
            self.same(before, self.in_file())
            self.crash(t)
            with self.subTest(method):
                self.same(before, self.saved(t))
                self.assertEqual(t.rpc('vhost_get_controllers'), controllers)
                self.assertEqual(t.rpc('config_get_pending'), [])
        self.serves('c0')
        self.assertEqual(controllers[0]['cpumask'], '0x2')
        self.assertEqual(controllers[0]['delay_base_us'], 25)

    def test_shutdown_keeps_the_state(self):
        t = self.prepare().start()
        self.image()
        t.rpc('bdev_aio_create', name='a0', filename=self.path('disk.img'))
        t.rpc('vhost_create_blk_controller', ctrlr='c0', dev_name='a0')
        before = self.saved(t)
        fe = F.Frontend.connect(self.path('c0'))
        fe.write(0, pattern(4096))
        t.stop()
        self.same(before, self.in_file())
        t.start()
        fe.destroy()
        with F.Frontend.connect(self.path('c0')) as fe:
            self.assertEqual(fe.read(0, 4096), pattern(4096))

    def test_file_is_private_and_leaves_no_other(self):
        os.umask(0)
        self.addCleanup(os.umask, 0o022)
        with open(self.state + '.tmp', 'w') as f:
            f.write('left by a crash')
        os.chmod(self.state + '.tmp', 0o666)
        t = self.prepare().start()
        t.rpc('bdev_malloc_create', num_blocks=2048, block_size=512)
        self.assertEqual(stat.S_IMODE(os.stat(self.state).st_mode), 0o600)
        self.assertFalse(os.path.exists(self.state + '.tmp'))

    def test_unchanged_is_not_written(self):
        t = self.prepare().start()
        t.rpc('bdev_malloc_create', num_blocks=2048, block_size=512)
        inode = os.stat(self.state).st_ino
        for method, params in (('bdev_get_bdevs', {}), ('vhost_get_controllers', {}),
                               ('log_set_level', {'level': 'NOTICE'})):
            t.rpc(method, **params)
        with self.assertRaises(spindle.RpcError):
            t.rpc('bdev_malloc_create', name='Malloc0', num_blocks=2048, block_size=512)
        self.assertEqual(os.stat(self.state).st_ino, inode)
        self.crash(t)
        self.assertEqual(os.stat(self.state).st_ino, inode)

    def test_link_is_followed(self):
        os.mkdir(self.path('real'))
        os.symlink(self.path('real/s.json'), self.state)
        with open(self.path('real/s.json'), 'w') as f:
            f.write('{"subsystems": []}')
        t = self.prepare().start()
        t.rpc('bdev_malloc_create', num_blocks=2048, block_size=512)
        self.assertTrue(os.path.islink(self.state))
        self.assertIn('Malloc0', open(self.path('real/s.json')).read())

    def test_write_through_comes_back(self):
        """QEMU does not say again that its guest has switched the write cache off."""
        t = self.prepare().start()
        t.rpc('bdev_aio_create', name='a0', filename=self.image())
        t.rpc('vhost_create_blk_controller', ctrlr='c0', dev_name='a0')
        for value in (b'\0', b'\1', b'\0'):
            with F.Frontend.connect(self.path('c0')) as fe:
                fe.set_config(WCE, value)
                fe.read(0, 512)
                call = {'\0': False}.get(value.decode())
                spindle.wait_until(
                    lambda: self.in_file()['vhost_blk'][0]['params'].get('writeback') == call,
                    5, 'the write cache in the state file')
            self.crash(t)
            with F.Frontend.connect(self.path('c0')) as fe:
                self.assertEqual(fe.get_config(WCE, 1), value)

    def test_many_clients_at_once(self):
        t = self.prepare().start()
        failures = []

        def work(k):
            try:
                with t.raw() as c:
                    for i in range(10):
                        c.call('bdev_null_create', {
                            'name': f'n{k}.{i}', 'num_blocks': 100, 'block_size': 512})
                        if i % 2:
                            c.call('bdev_null_delete', {'name': f'n{k}.{i}'})
            except Exception as e:      # shown by the test itself
                failures.append(e)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
        for x in threads:
            x.start()
        for x in threads:
            x.join()
        self.assertEqual(failures, [])
        before = self.saved(t)
        self.assertEqual(len(before['bdev']), 80)
        self.crash(t)
        self.same(before, self.saved(t))

    @spindle.timeout(180)
    def test_500_disks(self):
        t = self.prepare().start()
        began = time.monotonic()
        for i in range(500):
            t.rpc('bdev_null_create', name=f'n{i}', num_blocks=2048, block_size=512)
            t.rpc('vhost_create_blk_controller', ctrlr=f'c{i}', dev_name=f'n{i}')
        made = time.monotonic() - began
        before = self.saved(t)
        t.kill()
        began = time.monotonic()
        t.start()
        back = time.monotonic() - began
        self.same(before, self.saved(t))
        print(f'500 disks: 1000 calls answered in {made:.2f} s, back {back:.2f} s after a kill')

    def test_requests_in_one_piece(self):
        """Pipelined calls and batches are answered in order, each when it is saved."""
        t = self.prepare().start()
        with t.raw() as c:
            calls = [{'jsonrpc': '2.0', 'id': i, 'method': 'bdev_null_create', 'params': {
                'name': f'n{i}', 'num_blocks': 100, 'block_size': 512}} for i in range(20)]
            c.send(''.join(json.dumps(x) for x in calls[:10]))
            for i in range(10):
                self.assertEqual(c.recv(), {'jsonrpc': '2.0', 'id': i, 'result': f'n{i}'})
            c.send(calls[10:])
            self.assertEqual([a['result'] for a in c.recv()], [f'n{i}' for i in range(10, 20)])
            # No id, and gone at once: done and saved all the same.
            c.send({'method': 'bdev_null_delete', 'params': {'name': 'n0'}})
        spindle.wait_until(lambda: len(self.in_file()['bdev']) == 19, 5, 'the last call')
        t.stop()


class Pipelined(RestartCase):
    """Changes of one client share a write of the state file; answers keep their order."""

    def call(self, i, method, **params):
        r = {'jsonrpc': '2.0', 'id': i, 'method': method}
        if params:
            r['params'] = params
        return json.dumps(r)

    def calls(self, count):
        """Each builds on those before: create, look, use, and some that are refused."""
        text = []
        for i in range(count):
            text += [
                self.call(5 * i, 'bdev_null_create', name=f'n{i}', num_blocks=2048,
                          block_size=512),
                self.call(5 * i + 1, 'bdev_get_bdevs', name=f'n{i}'),
                self.call(5 * i + 2, 'vhost_create_blk_controller', ctrlr=f'c{i}',
                          dev_name=f'n{i}'),
                self.call(5 * i + 3, 'bdev_null_create', name=f'n{i}', num_blocks=2048,
                          block_size=512),
                self.call(5 * i + 4, 'bdev_malloc_create', name=f'm{i}', num_blocks=8,
                          block_size=512)]
        return text

    def test_order_and_durability(self):
        t = self.prepare('--no-huge').start()
        text = self.calls(100)
        with t.raw(20) as c:
            threading.Thread(target=c.send, args=('\n'.join(text),), daemon=True).start()
            for i in range(len(text)):
                answer = c.recv()
                self.assertEqual(answer['id'], i)
                self.assertEqual('error' in answer, i % 5 == 3, answer)
                # What has been answered is there, after a crash, too.
                if i in (0, 2, 252, 499):
                    names = {e['params'].get('name') for e in self.in_file()['bdev']}
                    self.assertIn(f'n{i // 5}', names)
                if i == 252:
                    ctrlrs = {e['params'].get('ctrlr') for e in self.in_file()['vhost_blk']}
                    self.assertIn('c50', ctrlrs)
        self.crash(t)
        self.assertEqual(len(t.rpc('bdev_get_bdevs')), 200)
        self.assertEqual(len(t.rpc('vhost_get_controllers')), 100)

    def test_client_that_leaves(self):
        # All that it had sent is carried out and saved, though nobody reads the answers.
        t = self.prepare('--no-huge').start()
        with t.raw(20) as c:
            c.send('\n'.join(self.calls(20)))
        spindle.wait_until(lambda: len(t.rpc('bdev_get_bdevs')) == 40, 10, '40 bdevs')
        t.rpc('bdev_null_create', name='last', num_blocks=8, block_size=512)
        self.assertEqual(len(self.in_file()['bdev']), len(self.saved(t)['bdev']))

    def test_no_json_behind(self):
        # The refusal comes last, and then the end.
        t = self.prepare('--no-huge').start()
        with t.raw(20) as c:
            c.send('\n'.join(self.calls(4)) + '\n[' + self.call(20, 'bdev_get_bdevs') + ','
                   + self.call(21, 'bdev_null_delete', name='n3') + ']\n}')
            for i in range(20):
                self.assertEqual(c.recv()['id'], i)
            # n3 is in use, by a controller: it goes all the same.
            self.assertEqual([a['id'] for a in c.recv()], [20, 21])
            self.assertEqual(c.recv()['error']['code'], -32700)
            with self.assertRaises(EOFError):
                c.recv()

    def test_not_saved(self):
        t = self.prepare('--no-huge').start()
        t.rpc('bdev_null_create', name='first', num_blocks=8, block_size=512)
        os.mkdir(self.state + '.tmp')       # where the new file is made
        with t.raw(20) as c:
            c.send('\n'.join(self.calls(4)))
            for i in range(20):
                answer = c.recv()
                self.assertEqual(answer['id'], i)
                if i % 5 in (0, 2, 4):
                    self.assertIn('not saved', answer['error']['data'])
        os.rmdir(self.state + '.tmp')
        spindle.wait_until(lambda: len(self.in_file()['bdev']) == len(self.saved(t)['bdev']), 10,
                           'a current state file')


class Refused(RestartCase):
    def test_broken_state_is_refused_and_kept(self):
        whole = {'method': 'bdev_null_create',
                 'params': {'name': 'n0', 'num_blocks': 100, 'block_size': 512}}

        def config(*calls):
            return json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': list(calls)}]})
        for text, why in (
                ('', 'is not JSON'), ('{"subsystems": [', 'is not JSON'), ('[]', 'no saved'),
                ('{"subsystems": 5}', 'no saved'), ('{"subsystems": [5]}', 'subsystem 0'),
                ('{"subsystems": [], "subsystems": []}', 'given twice'),
                ('{"subsystems": [{"subsystem": "bdev", "config": {}}]}', 'subsystem 0'),
                (config(whole, 5), 'entry 1'), (config(whole, {'params': {}}), 'entry 1'),
                (config(whole, {'method': 'nope'}), 'no method "nope"'),
                (config(whole, {'method': 'bdev_null_create', 'params': []}), 'must be an object'),
                (config(whole, {'method': 'bdev_null_create', 'params': {'name': 5}}), '"name"'),
                (config({'method': 'bdev_null_create', 'params': {'nme': ''}}), '"nme"')):
            with self.subTest(text):
                with open(self.state, 'w') as f:
                    f.write(text)
                self.refused(self.prepare(), why)
                self.assertEqual(open(self.state).read(), text)

    def test_two_targets_one_file(self):
        t = self.prepare().start()
        other = self.target('0x1', '--state', self.state, start=False)
        self.refused(other, 'kept by another target')
        t.kill()
        other.start()

    def test_no_directory(self):
        self.state = self.path('nowhere/state.json')
        self.refused(self.prepare(), 'No such file or directory')
        self.state = self.dir
        self.refused(self.prepare(), 'state file')

    def test_wait_for_rpc(self):
        t = self.prepare('--wait-for-rpc')
        self.assertEqual(t.run_to_exit(), 1)
        self.assertIn('--wait-for-rpc', t.log())

    def test_file_that_cannot_be_written(self):
        """The change is made, its answer says that it would not survive; later it would."""
        t = self.prepare().start()
        t.rpc('bdev_null_create', name='n0', num_blocks=100, block_size=512)
        before = open(self.state).read()
        os.mkdir(self.state + '.tmp')
        e = self.rpc_fails(t, -21, 'bdev_null_create', 'done, but not saved', name='n1',
                           num_blocks=100, block_size=512)
        self.assertIn(self.state, e.data)
        self.assertEqual(len(t.rpc('bdev_get_bdevs')), 2)
        self.assertEqual(open(self.state).read(), before)
        self.rpc_fails(t, -21, 'vhost_create_blk_controller', 'done, but not saved', ctrlr='c0',
                       dev_name='n1')
        os.rmdir(self.state + '.tmp')
        t.wait_log('saved again', 10)
        before = self.saved(t)
        self.crash(t)
        self.same(before, self.saved(t))
        self.assertEqual(len(before['bdev']), 2)

    def test_full_disk(self):
        """A file system of a few pages: what does not fit leaves the last good file."""
        spindle.need_root()
        os.mkdir(self.path('small'))
        if os.system(f'mount -t tmpfs -o size=12k tmpfs {self.path("small")} 2>/dev/null'):
            self.skipTest('cannot mount a tmpfs')
        self.addCleanup(os.system, f'umount -l {self.path("small")}')
        self.state = self.path('small/state.json')
        t = self.prepare().start()
        for i in range(100):
            try:
                t.rpc('bdev_null_create', name=f'n{i}', num_blocks=100, block_size=512)
            except spindle.RpcError as e:
                self.assertEqual(e.code, -28)
                break
        self.assertGreater(i, 2)
        self.assertEqual(len(self.in_file()['bdev']), i)
        self.crash(t)
        self.assertEqual(len(t.rpc('bdev_get_bdevs')), i)


class Systemd(RestartCase):
    def test_ready_when_loaded(self):
        """Type=notify: what is ordered after the target finds its disks."""
        path = self.write_config([
            ('bdev_malloc_create', {'num_blocks': 2048, 'block_size': 512}),
            ('vhost_create_blk_controller', {'ctrlr': 'c0', 'dev_name': 'Malloc0'})])
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(self.path('notify'))
            s.settimeout(10 * spindle.SLOW)
            t = self.prepare('-c', path)
            t.env = {'NOTIFY_SOCKET': self.path('notify')}
            t.spawn()
            self.assertEqual(s.recv(100), b'READY=1')
            self.serves('c0')
            self.assertEqual(len(t.rpc('bdev_get_bdevs')), 1)

    def test_example_unit(self):
        """systemd understands it, and the program all of its flags."""
        with open(spindle.REPO / 'scripts' / 'spindle.service') as f:
            unit = f.read()
        run = re.search(r'^ExecStart=(.*)', unit, re.M).group(1).split()[1:]
        with open(self.path('spindle.service'), 'w') as f:
            f.write(re.sub(r'^ExecStart=\S+', 'ExecStart=/bin/true', unit, flags=re.M))
        for name in re.findall(r'(?<!\w)--?[a-zA-Z][\w-]*', ' '.join(run)):
            self.assertRegex(usage(), rf'(?<![\w-]){name}\b')
        tool = spindle.need_tool('systemd-analyze')
        done = subprocess.run([tool, 'verify', self.path('spindle.service')],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertNotIn('spindle.service', done.stdout)


class ConfigFile(RestartCase):
    def test_loads_what_save_config_wrote(self):
        t = self.prepare(state=False).start()
        for method, params in list(Restart.steps(self))[:6]:
            t.rpc(method, **params)
        t.rpc('vhost_create_blk_controller', ctrlr='c0', dev_name='a0')
        before = self.saved(t)
        text = t.cli('save_config').stdout
        t.stop()
        for name in ('-c', '--config', '--json'):
            t = self.prepare(name, self.write_config([], text=text), state=False).start()
            self.same(before, self.saved(t))
            self.serves('c0')
            t.stop()

    def test_loads_what_spdk_wrote(self):
        """Subsystems without entries, options that mean nothing here, comments, old names."""
        text = '''// a comment
        {"subsystems": [
          {"subsystem": "scheduler", "config": [
            {"method": "framework_set_scheduler", "params": {"name": "static"}}]},
          {"subsystem": "vmd", "config": []}, {"subsystem": "keyring", "config": null},
          {"subsystem": "iobuf", "config": [
            {"method": "iobuf_set_options", "params": {"small_pool_count": 8192}}]},
          {"subsystem": "bdev", "config": [
            {"method": "bdev_set_options", "params": {"bdev_io_pool_size": 65535}},
            /* made by hand: "x" // */
            {"method": "construct_malloc_bdev", "params": {"num_blocks": 2048, "block_size": 512}},
            {"method": "framework_start_init"},
            {"method": "bdev_malloc_create", "params": {"num_blocks": 4096, "block_size": 512}},
            {"method": "bdev_wait_for_examine"}]},
          {"subsystem": "vhost_blk", "config": [
            {"method": "vhost_create_blk_controller", "params":
              {"ctrlr": "c0", "dev_name": "Malloc1", "cpumask": "1", "readonly": false,
               "transport": "vhost_user_blk"}}]}]}'''
        t = self.prepare('-c', self.write_config([], text=text), state=False).start()
        self.assertEqual([b['num_blocks'] for b in t.rpc('bdev_get_bdevs', name='Malloc1')], [4096])
        self.assertEqual(t.rpc('vhost_get_controllers')[0]['cpumask'], '0x1')
        self.serves('c0')

    def test_errors_are_fatal(self):
        null = {'name': 'n0', 'num_blocks': 100, 'block_size': 512}
        for calls, why in (
                ([('bdev_null_create', {**null, 'block_size': 500})], 'block_size 500'),
                ([('bdev_null_create', null), ('bdev_null_create', null)], 'exists already'),
                ([('vhost_create_blk_controller', {'ctrlr': 'c', 'dev_name': 'x'})], 'bdev \'x\''),
                ([('bdev_null_create', null), ('vhost_create_blk_controller',
                  {'ctrlr': 'c', 'dev_name': 'n0', 'cpumask': '0x10'})], 'cpumask'),
                ([('bdev_aio_create', {'name': 'a', 'filename': '/'})], 'regular'),
                ([('bdev_error_create', {'base_name': 'x'})], "'x'"),
                ([('nope', {})], 'no method'), ([('bdev_null_create', {'x': 1})], '"x"')):
            with self.subTest(calls):
                path = self.write_config(calls)
                self.refused(self.prepare('-c', path, state=False), why)
                self.assertFalse(os.path.exists(self.path('c')))
                t = self.prepare('-c', path, '--json-ignore-init-errors', state=False).start()
                self.assertIn('is left out', t.log())
                self.assertEqual(t.rpc('config_get_pending'), [])
                t.stop()
        self.refused(self.prepare('-c', self.path('none'), state=False), 'No such file')

    def test_state_comes_before_the_file(self):
        path = self.write_config([('bdev_null_create', {
            'name': 'n0', 'num_blocks': 100, 'block_size': 512})])
        t = self.prepare('-c', path).start()
        self.assertEqual(t.rpc('bdev_get_bdevs')[0]['name'], 'n0')
        t.rpc('bdev_null_delete', name='n0')
        self.crash(t)
        self.assertEqual(t.rpc('bdev_get_bdevs'), [])

    def test_uuid_is_kept(self):
        path = self.write_config([('bdev_null_create', {
            'name': 'n0', 'num_blocks': 100, 'block_size': 512})])
        t = self.prepare('-c', path).start()
        spindle.wait_until(lambda: os.path.exists(self.state), 5, 'the state file')
        uuid = t.rpc('bdev_get_bdevs')[0]['uuid']
        self.crash(t)
        self.assertEqual(t.rpc('bdev_get_bdevs')[0]['uuid'], uuid)


class Pending(RestartCase):
    """A file that is away is to a bdev what a cluster without monitors is."""

    def away(self, *args, state=True):
        """A disk behind two controllers and a delay; restarted while its file is away."""
        t = self.prepare(*args, state=state).start()
        self.image()
        t.rpc('bdev_aio_create', name='a0', filename=self.path('disk.img'))
        t.rpc('bdev_delay_create', base_bdev_name='a0', name='d0', avg_read_latency=0,
              p99_read_latency=0, avg_write_latency=0, p99_write_latency=0)
        t.rpc('vhost_create_blk_controller', ctrlr='c0', dev_name='d0')
        t.rpc('vhost_controller_set_coalescing', ctrlr='c0', delay_base_us=9, iops_threshold=999)
        t.rpc('bdev_null_create', name='n0', num_blocks=100, block_size=512)
        t.rpc('vhost_create_blk_controller', ctrlr='c1', dev_name='n0')
        self.before = self.saved(t)
        t.stop()
        os.rename(self.path('disk.img'), self.path('gone.img'))
        return t.start()

    def come(self):
        os.rename(self.path('gone.img'), self.path('disk.img'))

    def test_attaches_when_it_comes(self):
        t = self.away()
        self.assertEqual(set(self.pending(t)), {'a0', 'd0', 'c0'})
        self.assertIn('No such file', self.pending(t)['a0']['error'])
        self.assertEqual(self.pending(t)['c0']['waits_for'], 'd0')
        self.assertEqual([c['ctrlr'] for c in t.rpc('vhost_get_controllers')], ['c1'])
        with self.assertRaises(OSError):
            F.Frontend.connect(self.path('c0'), timeout=1.0)
        F.Frontend.connect(self.path('c1')).destroy()
        self.same(self.before, self.saved(t))
        # Other changes do not lose it, however often it dies meanwhile.
        t.rpc('bdev_null_create', name='n1', num_blocks=100, block_size=512)
        self.crash(t)
        self.assertEqual(set(self.pending(t)), {'a0', 'd0', 'c0'})
        t.rpc('bdev_null_delete', name='n1')
        self.same(self.before, self.in_file())
        self.come()
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 15, 'the disk')
        self.serves('c0')
        self.same(self.before, self.saved(t))
        self.same(self.before, self.in_file())
        self.assertEqual(t.rpc('vhost_get_controllers', name='c0')[0]['delay_base_us'], 9)
        self.assertEqual(t.log().count('trying again'), 1)

    def test_waits_only_for_what_it_needs(self):
        """Names of different things may be equal, and equal to other parameters."""
        os.mkdir(self.path('images'))
        self.image('images/a0')
        calls = [('bdev_aio_create', {'name': 'a0', 'filename': self.path('none')}),
                 ('bdev_aio_create', {'name': 'a1', 'filename': self.path('images/a0'), 'uuid':
                                      '6ec40423-4afc-4301-8f57-0888860f646a'}),
                 ('vhost_create_blk_controller', {'ctrlr': 'a0', 'dev_name':
                                                  '6ec40423-4afc-4301-8f57-0888860f646a'}),
                 ('vhost_controller_set_coalescing', {
                     'ctrlr': 'a0', 'delay_base_us': 3, 'iops_threshold': 300}),
                 ('bdev_null_create', {'name': 'n0', 'num_blocks': 8192, 'block_size': 512}),
                 ('bdev_null_resize', {'name': 'n0', 'new_size': 5}),
                 ('bdev_delay_create', {
                     'base_bdev_name': 'n0', 'name': 'd0', 'avg_read_latency': 0,
                     'p99_read_latency': 0, 'avg_write_latency': 0, 'p99_write_latency': 0}),
                 ('bdev_delay_update_latency', {'delay_bdev_name': 'd0', 'latency_type':
                                                'avg_read', 'latency_us': 5})]
        t = self.prepare('-c', self.write_config(calls)).start()
        self.assertEqual([p['name'] for p in t.rpc('config_get_pending')], ['a0'])
        self.serves('a0')
        self.assertEqual(t.rpc('vhost_get_controllers')[0]['delay_base_us'], 3)
        self.assertEqual(t.rpc('bdev_get_bdevs', name='n0')[0]['num_blocks'], 5 * MIB // 512)
        delay = [c['params'] for c in self.saved(t)['bdev'] if c['method'] == 'bdev_delay_create']
        self.assertEqual(delay[0]['avg_read_latency'], 5)

    def test_names_are_taken(self):
        t = self.away()
        null = {'num_blocks': 100, 'block_size': 512}
        self.rpc_fails(t, -17, 'bdev_null_create', 'is pending', name='a0', **null)
        self.rpc_fails(t, -17, 'bdev_aio_create', 'is pending', name='a0',
                       filename=self.path('gone.img'))
        self.rpc_fails(t, -32602, 'vhost_create_blk_controller', 'is pending', ctrlr='c0',
                       dev_name='n0')
        self.rpc_fails(t, -32602, 'vhost_controller_set_coalescing', 'is pending', ctrlr='c0',
                       delay_base_us=0, iops_threshold=1000)
        self.rpc_fails(t, -19, 'bdev_uring_delete', name='a0')
        self.rpc_fails(t, -16, 'bdev_aio_delete', 'stands on', name='a0')
        self.rpc_fails(t, -19, 'bdev_null_delete', name='a0')

    def test_delete(self):
        for order in ('ctrlr first', 'bdev first'):
            with self.subTest(order):
                t = self.away()
                if order == 'ctrlr first':
                    t.rpc('vhost_delete_controller', ctrlr='c0')
                self.assertTrue(t.rpc('bdev_delay_delete', name='d0'))
                self.assertTrue(t.rpc('bdev_aio_delete', name='a0'))
                self.assertEqual([c['params']['name'] for c in self.in_file()['bdev']], ['n0'])
                self.assertEqual([c['params']['ctrlr'] for c in self.in_file()['vhost_blk']
                                  if c['params'].get('dev_name')], ['c1'])
                if order == 'bdev first':
                    # As a controller whose bdev was deleted: it stays, and is not saved.
                    self.assertEqual(set(self.pending(t)), {'c0'})
                    self.assertTrue(t.rpc('vhost_delete_controller', ctrlr='c0'))
                self.assertEqual(t.rpc('config_get_pending'), [])
                self.rpc_fails(t, -19, 'bdev_aio_delete', name='a0')
                self.rpc_fails(t, -32602, 'vhost_delete_controller', ctrlr='c0')
                self.come()
                self.crash(t)
                self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs')], ['n0'])
                t.stop()
                os.unlink(self.state)

    def test_made_anew(self):
        """A pending controller takes the bdev that somebody makes under its bdev's name."""
        t = self.away()
        t.rpc('bdev_delay_delete', name='d0')
        t.rpc('bdev_malloc_create', name='d0', num_blocks=2048, block_size=512)
        spindle.wait_until(lambda: 'c0' not in self.pending(t), 5, 'the controller')
        self.serves('c0')
        self.assertEqual(t.rpc('vhost_get_controllers', name='c0')[0]['iops_threshold'], 999)
        before = self.saved(t)
        self.crash(t)
        self.same(before, self.saved(t))

    def test_from_a_config_file(self):
        path = self.write_config([
            ('bdev_uring_create', {'name': 'u0', 'filename': self.path('late.img')}),
            ('vhost_create_blk_controller', {'ctrlr': 'c0', 'dev_name': 'u0'}),
            ('bdev_malloc_create', {'num_blocks': 2048, 'block_size': 512})])
        t = self.prepare('-c', path, state=False).start()
        self.assertEqual([b['name'] for b in t.rpc('bdev_get_bdevs')], ['Malloc0'])
        self.assertEqual(set(self.pending(t)), {'u0', 'c0'})
        text = t.cli('save_config').stdout
        self.assertIn('late.img', text)
        self.image('late.img')
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 15, 'the disk')
        self.serves('c0')
        t.stop()

    def test_changed_core_mask(self):
        """What the state asks for and cannot have is kept, and serves again when it can."""
        spindle.need_cores(2)
        t = self.prepare(mask='0x3').start()
        t.rpc('bdev_malloc_create', name='m0', num_blocks=2048, block_size=512)
        t.rpc('vhost_create_blk_controller', ctrlr='c0', dev_name='m0', cpumask='0x2')
        t.rpc('vhost_create_blk_controller', ctrlr='c1', dev_name='m0', cpumask='0x1')
        t.stop()
        t = self.prepare(mask='0x1').start()
        self.assertIn('cpumask', self.pending(t)['c0']['error'])
        self.serves('c1')
        t.stop()
        t = self.prepare(mask='0x3').start()
        self.serves('c0')
        t.stop()

    def test_stops_while_pending(self):
        t = self.away()
        began = time.monotonic()
        t.stop()
        self.assertLess(time.monotonic() - began, 5 * spindle.SLOW)
        self.same(self.before, self.in_file())

    def test_many_away(self):
        calls = []
        for i in range(200):
            calls += [('bdev_aio_create', {'name': f'a{i}', 'filename': self.path(f'{i}.img')}),
                      ('vhost_create_blk_controller', {'ctrlr': f'c{i}', 'dev_name': f'a{i}'})]
        t = self.prepare('-c', self.write_config(calls)).start()
        self.assertEqual(len(t.rpc('config_get_pending')), 400)
        self.assertLess(len(t.log().splitlines()), 60)
        for i in range(200):
            self.image(f'{i}.img', 1)
        spindle.wait_until(lambda: not t.rpc('config_get_pending'), 30, 'the disks')
        self.assertEqual(len(t.rpc('vhost_get_controllers')), 200)
        self.serves('c199')


if __name__ == '__main__':
    spindle.run_tests()
