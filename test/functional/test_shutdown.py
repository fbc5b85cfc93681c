#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Ending and starting: how soon a signal ends the target and what it leaves behind, sockets of the
dead and of the living, the process id file, and who may have which core."""
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time

from vhostcase import F, MIB, SLOW, VhostCase, pattern, spindle

# On a quiet machine it is well below a tenth of this.
SOON = 2.0 * SLOW


class Signals(VhostCase):
    def check_gone(self, t):
        left = [n for n in os.listdir(t.dir) if stat.S_ISSOCK(os.lstat(t.path(n)).st_mode)]
        self.assertEqual(left, [], 'sockets are left')

    def test_idle(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            for args in ((), ('--interrupt-mode',), ('--poll-us', '100')):
                t = self.target('0x3', *args)
                self.disk(t)
                self.ctrlr(t, 'c1', self.file(t))
                self.assertLess(t.stop(number), SOON)
                self.check_gone(t)
                self.assertIn('shutting down', t.log())

    def test_nothing_created(self):
        t = self.target()
        self.assertLess(t.stop(), SOON)
        self.check_gone(t)

    def test_by_rpc(self):
        for name in ('SIGTERM', 'SIGINT'):
            t = self.target()
            fe = self.connect(self.disk(t))
            self.check_io(fe)
            self.assertTrue(t.rpc('spdk_kill_instance', sig_name=name))
            self.assertEqual(t.wait(5), 0)
            self.check_gone(t)

    def under_load(self, t, path, seconds=0.2, **opts):
        """Full queues until the connection ends; -> statuses seen."""
        fe = self.connect(path, queues=2, indirect=True, queue_size=64, **opts)
        gpa = fe.alloc(64 * 8192, 4096)
        statuses, running = [], threading.Event()

        def drive():
            try:
                while True:
                    for q in fe.q:
                        while q.num_free:
                            q.submit(F.T_OUT, 8 * q.num_free, [(gpa + 4096 * q.num_free, 4096)],
                                     how=F.HOW_NO_KICK)
                        q.kick(False)
                        statuses.extend(d.status for d in q.wait(2 * SLOW))
                    running.set()
            except OSError:
                running.set()

        thread = threading.Thread(target=drive)
        thread.start()
        running.wait(5)
        time.sleep(seconds)
        took = t.stop()
        thread.join()
        return took, set(statuses)

    def test_under_load(self):
        for args in ((), ('--poll-us', '50')):
            for make in (self.malloc, self.file, lambda t: self.delay(t, self.malloc(t), 20000)):
                t = self.target('0x3', *args)
                took, statuses = self.under_load(t, self.ctrlr(t, 'c0', make(t)))
                self.assertLess(took, SOON)
                # What is answered is answered truly: done, or refused because the disk is gone.
                self.assertIn(F.S_OK, statuses)
                self.assertLessEqual(statuses, {F.S_OK, F.S_IOERR})
                # No guest that comes again is told that its disk is gone, nor is the operator.
                self.assertNotIn('further requests will fail', t.log())
                self.check_gone(t)

    def test_with_requests_that_never_end(self):
        t = self.target()
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        self.inject(t, name, 'all', 'pending', num=100)
        for _ in range(20):
            fe.q[0].submit(F.T_FLUSH, 0)
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 20, 2, 'in flight')
        self.assertLess(t.stop(), 2 * SOON)
        self.check_gone(t)

    def test_while_a_front_end_waits_for_its_base(self):
        t = self.target()
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        self.inject(t, name, 'flush', 'pending')
        fe.q[0].submit(F.T_FLUSH, 0)
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 1, 2, 'in flight')
        fe.send_raw(F.GET_VRING_BASE, bytes(8))
        self.assertTrue(fe.quiet(0.1))
        self.assertLess(t.stop(), 2 * SOON)

    def test_with_long_delays(self):
        # 30 s to go: not waited for.
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.delay(t, self.malloc(t), 30000000)))
        for _ in range(10):
            fe.q[0].submit(F.T_IN, 0, [(fe.alloc(512), 512)])
        spindle.wait_until(lambda: self.sessions(t)[0]['inflight_task_cnt'] == 10, 2, 'in flight')
        self.assertLess(t.stop(), 2 * SOON)

    def test_with_stopped_and_half_started_front_ends(self):
        t = self.target()
        path = self.disk(t)
        fes = [self.connect(path, no_start=True) for _ in range(5)]
        fes[1].negotiate()
        fes[2].send_bytes(b'\1\0\0')
        fes[3].start()
        fes[3].stop()
        fes[4].start()
        fes[4].q[0].push_head(999)
        self.assertLess(t.stop(), SOON)
        self.check_gone(t)

    def test_data_are_there_afterwards(self):
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.file(t)))
        fe.write(5, pattern(MIB, 6))
        self.assertLess(t.stop(), SOON)
        with open(t.path('f0.img'), 'rb') as f:
            f.seek(5 * 512)
            self.assertEqual(f.read(MIB), pattern(MIB, 6))

    @staticmethod
    def unmount(path):
        """Waits until what hung there has ended and the loop device has let go."""
        spindle.wait_until(lambda: os.system(f'umount {path} 2>/dev/null') == 0, 10, 'umount')

    def frozen_device(self, t):
        """A controller on a loop device whose writes hang: its file is on a frozen file system."""
        spindle.need_root()
        for tool in ('losetup', 'fsfreeze', 'mkfs.ext4'):
            spindle.need_tool(tool)
        mount, image = t.path('fs'), t.path('fs.img')
        os.mkdir(mount)
        with open(image, 'wb') as f:
            f.truncate(32 * MIB)
        if os.system(f'mkfs.ext4 -q {image} && mount -o loop {image} {mount}') != 0:
            self.skipTest('cannot mount a file system')
        self.addCleanup(self.unmount, mount)
        with open(mount + '/disk', 'wb') as f:
            f.truncate(8 * MIB)
        loop = subprocess.run(['losetup', '-f', '--show', mount + '/disk'], text=True,
                              stdout=subprocess.PIPE).stdout.strip()
        if not loop:
            self.skipTest('no loop device')
        self.addCleanup(os.system, f'losetup -d {loop}')
        self.addCleanup(t.kill)
        t.rpc('bdev_uring_create', name='u0', filename=loop)
        fe = self.connect(self.ctrlr(t, 'c0', 'u0'))
        self.check_io(fe)
        os.system(f'sync; fsfreeze -f {mount}')
        self.addCleanup(os.system, f'fsfreeze -u {mount}')
        for i in range(4):
            fe.q[0].submit(F.T_OUT, 8 * i, [(fe.alloc(4096, 4096), 4096)])
        time.sleep(0.1)
        self.assertEqual(fe.q[0].poll(), [])
        return fe

    def test_second_signal_when_draining_hangs(self):
        t = self.target()
        fe = self.frozen_device(t)
        t.client.close()
        t.client = None
        t.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        self.assertTrue(t.running(), 'did not wait for requests that the kernel has')
        began = time.monotonic()
        t.stop(code=1)
        self.assertLess(time.monotonic() - began, SOON)
        fe.destroy()

    def test_draining_has_an_end(self):
        t = self.target()
        self.frozen_device(t)
        took = t.stop(timeout=20, code=1)
        self.assertGreater(took, 1)
        self.assertLess(took, 8 * SLOW)
        self.assertIn('leaving without them', t.log())

    def test_second_signal(self):
        # Signals that come while it drains end it at once, with whatever status.
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.file(t)))
        self.check_io(fe)
        t.client.close()
        t.client = None
        began = time.monotonic()
        for _ in range(20):
            t.send_signal(signal.SIGTERM)
        self.assertIn(t.wait(5), (0, 1))
        self.assertLess(time.monotonic() - began, SOON)

    def test_hangup_signal_is_ignored(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            t.send_signal(number)
        time.sleep(0.1)
        self.check_io(fe)
        self.assertLess(t.stop(), SOON)

    def test_front_end_comes_back_to_the_next_target(self):
        t = self.target()
        fe = self.connect(self.ctrlr(t, 'c0', self.file(t)))
        fe.write(0, pattern(4096, 9))
        t.stop()
        self.check_closed(fe)
        t.start()
        self.ctrlr(t, 'c0', self.file(t))
        fe.reconnect()
        self.assertEqual(fe.read(0, 4096), pattern(4096, 9))


class Sockets(VhostCase):
    def test_stale_sockets_are_replaced(self):
        t = self.target()
        self.disk(t)
        t.kill()
        self.assertTrue(os.path.exists(t.path('c0')) and os.path.exists(t.sock))
        t.start()
        fe = self.connect(self.disk(t))
        self.check_io(fe)

    def test_live_vhost_socket_is_refused(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        second = self.target('0x1', directory=t.dir, sock=t.path('rpc2.sock'))
        self.malloc(second)
        self.rpc_fails(second, -32602, 'vhost_create_blk_controller', 'in use', ctrlr='c0',
                       dev_name='m0')
        self.assertEqual(second.rpc('vhost_get_controllers'), [])
        self.assertIn('in use', second.log())
        # The first one has not noticed; the second can use another name.
        self.check_io(fe)
        self.check_io(self.connect(t.path('c0')))
        self.check_io(self.connect(self.ctrlr(second, 'c1', 'm0')))

    def test_live_rpc_socket_is_refused(self):
        t = self.target()
        second = self.target('0x1', directory=t.dir, start=False)
        self.assertEqual(second.run_to_exit(), 1)
        self.assertIn(t.sock, second.log())
        t.rpc('spdk_get_version')
        self.assertTrue(os.path.exists(t.sock))

    def test_what_is_no_socket_is_left_alone(self):
        t = self.target()
        self.malloc(t)
        with open(t.path('c0'), 'w') as f:
            f.write('mine')
        self.rpc_fails(t, -32602, 'vhost_create_blk_controller', 'not a socket', ctrlr='c0',
                       dev_name='m0')
        with open(t.path('c0')) as f:
            self.assertEqual(f.read(), 'mine')
        os.unlink(t.path('c0'))
        self.check_io(self.connect(self.ctrlr(t, 'c0', 'm0')))

    def test_deleted_controller_leaves_others_socket(self):
        # Somebody replaced the socket file meanwhile: it is not ours to remove.
        t = self.target()
        path = self.disk(t)
        os.unlink(path)
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(path)
        self.addCleanup(theirs.close)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.assertTrue(os.path.exists(path))

    def test_socket_appears_when_the_disk_is_open(self):
        t = self.target()
        self.rpc_fails(t, -32602, 'vhost_create_blk_controller', 'nodisk', ctrlr='c0',
                       dev_name='nodisk')
        self.assertFalse(os.path.exists(t.path('c0')))
        self.assertIn('nodisk', t.log())
        self.check_io(self.connect(self.disk(t)))

    def test_directory_missing(self):
        t = self.target('0x1', '-S', '/tmp/there/is/none', start=False)
        self.assertEqual(t.run_to_exit(), 1)
        self.assertIn('/tmp/there/is/none', t.log())

    def test_names(self):
        t = self.target()
        self.malloc(t)
        for name in ('', 'a/b', '../x', 'n' * 300, 'n' * 120):
            self.rpc_fails(t, -32602, 'vhost_create_blk_controller', None, ctrlr=name,
                           dev_name='m0')
        self.assertEqual(t.rpc('vhost_get_controllers'), [])
        self.check_io(self.connect(self.ctrlr(t, 'vhost.1', 'm0')))
        self.rpc_fails(t, -32602, 'vhost_create_blk_controller', None, ctrlr='vhost.1',
                       dev_name='m0')


class Files(VhostCase):
    def test_pidfile(self):
        path = os.path.join(self.temp_dir(), 'pid')
        t = self.target('0x1', '-f', path)
        with open(path) as f:
            self.assertEqual(f.read(), f'{t.pid}\n')
        t.stop()
        self.assertFalse(os.path.exists(path))

    def test_pidfile_impossible(self):
        t = self.target('0x1', '-f', '/tmp/no/such/dir/pid', start=False)
        self.assertEqual(t.run_to_exit(), 1)
        self.assertIn('/tmp/no/such/dir/pid', t.log())
        self.assertFalse(os.path.exists(t.sock))


class Cores(VhostCase):
    """With locks: these tests skip where some other target has the core."""

    def locked(self, mask):
        t = self.target(mask, locks=True, start=False)
        try:
            t.start()
        except spindle.TargetError:
            if 'core' in t.log() and 'process' in t.log():
                self.skipTest('another target has the cores: ' + t.log_tail(1))
            raise
        return t

    def test_second_target_on_a_core_is_refused(self):
        t = self.locked('0x1')
        with open('/var/tmp/spdk_cpu_lock_000', 'rb') as f:
            self.assertEqual(int.from_bytes(f.read(4), 'little'), t.pid)
        for mask in ('0x1', '0x3', '[0,1]'):
            second = self.target(mask, locks=True, start=False)
            self.assertEqual(second.run_to_exit(), 1)
            text = second.log()
            self.assertRegex(text, r'core 0\b')
            self.assertIn(str(t.pid), text)
            self.assertFalse(os.path.exists(second.sock))
        self.check_io(self.connect(self.disk(self.target('0x1'))))      # locks disabled
        t.stop()
        second.start()

    def test_other_core_is_free(self):
        spindle.need_cores(2)
        self.locked('0x1')
        self.locked('0x2')

    def test_lock_of_a_dead_target(self):
        self.locked('0x1').kill()
        self.locked('0x1')

    def test_absent_cores(self):
        cores = os.cpu_count()
        for mask, number in ((hex(1 << cores), cores), (f'[0,{cores + 3}]', cores + 3),
                             (f'[{cores}]', cores), (hex(1 << 120 | 1), 120)):
            t = self.target(mask, start=False)
            self.assertEqual(t.run_to_exit(), 1)
            self.assertTrue(re.search(rf'core {number}\b', t.log()), t.log())

    def test_disallowed_core(self):
        spindle.need_cores(2)
        allowed = os.sched_getaffinity(0)
        keep = min(allowed)
        other = max(allowed)
        t = self.target(hex(1 << other), start=False)
        os.sched_setaffinity(0, {keep})
        try:
            self.assertEqual(t.run_to_exit(), 1)
        finally:
            os.sched_setaffinity(0, allowed)
        self.assertTrue(re.search(rf'core {other}\b', t.log()), t.log())

    def test_masks_that_are_none(self):
        for mask in ('', '0', '0x0', 'x', '[', '[]', '[1-', '0x1g', '-1', '[0,1', '1,2'):
            t = self.target(mask, start=False)
            self.assertEqual(t.run_to_exit(), 1, mask)

    def test_reactors_are_pinned(self):
        t = self.target('0x3' if os.cpu_count() > 1 else '0x1')
        for r in t.rpc('framework_get_reactors')['reactors']:
            self.assertEqual(os.sched_getaffinity(r['tid']), {r['lcore']})


if __name__ == '__main__':
    spindle.run_tests()
