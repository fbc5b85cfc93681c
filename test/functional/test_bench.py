#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark tools are right about what they say: figures that add up, on our target and on
qemu-storage-daemon; a block that differs is found; JSON and picture can be read. No speed is
asked for."""
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

from vhostcase import MIB, SLOW, VhostCase, spindle

RUN = spindle.REPO / 'test' / 'bench' / 'run.py'
SVG = '{http://www.w3.org/2000/svg}'


class BenchCase(VhostCase):
    def bench(self, path, *args, code=0):
        """One run of the load generator; -> its JSON, and what it said beside."""
        argv = [spindle.built('test/bench'), '--socket', path, '--json', '--runtime', '0.2', *args]
        p = subprocess.run(argv, capture_output=True, text=True, timeout=60 * SLOW, check=False)
        self.assertEqual(p.returncode, code, p.stderr)
        return json.loads(p.stdout), p.stderr

    def check(self, r, pid):
        self.assertGreater(r['ios'], 0)
        self.assertEqual((r['errors'], r['verify_errors']), (0, 0))
        self.assertAlmostEqual(r['bytes_per_s'], r['iops'] * r['bs'], delta=r['bs'])
        lat = [r['lat_us'][k] for k in ('p50', 'p90', 'p99', 'p99.9', 'p99.99', 'max')]
        self.assertEqual(lat, sorted(lat))
        self.assertEqual(r['target_pid'], pid)
        self.assertGreater(r['target_cpu_s'], 0)


class Load(BenchCase):
    def test_every_option(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.null(t), packed_ring=True)
        for args in ('--qd 1', '--qd 32 --no-inflight', '--qd 32 --packed', '--qd 32 --rewrite',
                     '--qd 8 --indirect --rewrite', '--qd 8 --packed --indirect',
                     '--qd 16 --queues 2 --bs 128k --rw read', '--qd 8 --rw write --libblkio',
                     '--qd 64 --queues 2 --wait --event-idx --calls 16', '--qd 4 --wait --packed'):
            with self.subTest(args=args):
                self.check(self.bench(path, *args.split())[0], t.pid)
        self.assertTrue(t.running())

    def test_counts(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.null(t))
        before = self.stats(t, 'n0')
        r, _ = self.bench(path, '--qd', '8', '--rw', 'randrw', '--read-pct', '70', '--histogram')
        after = self.stats(t, 'n0')
        reads, writes = (after[k] - before[k] for k in ('num_read_ops', 'num_write_ops'))
        self.assertEqual((r['reads'], r['ios'] - r['reads']), (reads, writes))
        self.assertGreater(reads, writes)
        self.assertGreater(writes, 0)
        self.assertEqual(sum(count for _, count in r['histogram_us']), r['ios'])

    def test_so_many_requests(self):
        t = self.target('0x1')
        path = self.disk(t, mib=1)
        r, _ = self.bench(path, '--bs', '512', '--rw', 'read', '--ios', '5000', '--runtime', '60')
        self.assertGreaterEqual(r['ios'], 4000)


class Verify(BenchCase):
    BLOCKS = 4 * MIB // 4096

    def scan(self, path, code):
        return self.bench(path, '--verify', '--rw', 'read', '--qd', '4', '--runtime', '60',
                          '--ios', str(self.BLOCKS + 16), code=code)

    def fill(self, path):
        r, _ = self.bench(path, '--prefill', '--verify', '--rw', 'randrw', '--qd', '8')
        self.assertGreater(r['ios'], 0)
        self.assertEqual(self.scan(path, 0)[0]['verify_errors'], 0)

    def test_a_block_that_another_wrote(self):
        t = self.target('0x1')
        path = self.disk(t, mib=4)
        self.fill(path)
        # One byte in the middle of block 77.
        fe = self.connect(self.ctrlr(t, 'c1', 'm0'))
        data = bytearray(fe.read(77 * 8 + 3, 512))
        data[100] ^= 1
        fe.write(77 * 8 + 3, bytes(data))
        r, said = self.scan(path, 1)
        self.assertEqual(r['verify_errors'], 1)
        self.assertIn(f'block 77 differs at byte {3 * 512 + 96}', said)

    def test_a_read_that_lies(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.error(t, self.malloc(t, mib=4)))
        self.fill(path)
        self.inject(t, 'EE_m0', 'read', 'corrupt_data', 2)
        self.assertEqual(self.scan(path, 1)[0]['verify_errors'], 2)

    def test_an_error_counts(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.error(t, self.malloc(t, mib=4)))
        self.inject(t, 'EE_m0', 'read', 'failure', 3)
        self.assertEqual(self.bench(path, code=1)[0]['errors'], 3)


class Peer(BenchCase):
    def test_storage_daemon(self):
        tool = spindle.need_tool('qemu-storage-daemon')
        t = self.target('0x1')      # for its directory
        path = t.path('qsd.sock')
        p = subprocess.Popen([tool, '--blockdev', 'driver=null-co,node-name=n,size=67108864',
                              '--export', 'vhost-user-blk,id=e,node-name=n,addr.type=unix,'
                              f'addr.path={path},writable=on'], stdin=subprocess.DEVNULL)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        spindle.wait_until(lambda: os.path.exists(path), 10, 'its socket')
        for args in ('--qd 1', '--qd 32', '--qd 8 --rw randrw --read-pct 70 --rewrite'):
            with self.subTest(args=args):
                self.check(self.bench(path, *args.split())[0], p.pid)


@spindle.unittest.skipIf(spindle.SANITIZER, 'speed means nothing here')
class Report(BenchCase):
    def run_py(self, *args):
        p = subprocess.run([sys.executable, str(RUN), *args], capture_output=True, text=True,
                           timeout=120, check=False)
        self.assertEqual(p.returncode, 0, p.stdout + p.stderr)
        return p.stdout

    def measure(self, only):
        directory = spindle.temp_dir()
        self.addCleanup(spindle.shutil.rmtree, directory, True)
        paths = {k: f'{directory}/out.{k}' for k in ('json', 'svg', 'markdown')}
        out = self.run_py('--only', only, '--rounds', '1', '--runtime', '0.05', '--malloc-mib',
                          '16', '--file-mib', '16', '--quiet', '99', '--dir', directory,
                          '--target-args=--disable-cpumask-locks',
                          *[a for k, v in paths.items() for a in (f'--{k}', v)])
        with open(paths['json']) as f:
            return json.load(f), out, paths

    def check_svg(self, path, words):
        root = ET.parse(path).getroot()
        self.assertEqual(root.tag, SVG + 'svg')
        drawn = ' '.join(e.text or '' for e in root.iter(SVG + 'text'))
        for word in words:
            self.assertIn(word, drawn)
        for e in root.iter(SVG + 'rect'):
            self.assertNotIn('-', e.get('width') + e.get('height'))

    def test_whole_run(self):
        data, out, paths = self.measure('null')
        for key in ('cpu', 'kernel', 'commit', 'qemu', 'fio', 'date'):
            self.assertIn(key, data['machine'])
        names = {c['name'] for c in data['cases'] if 'ours' in c['who']}
        self.assertLessEqual({'null randread 4k QD1', 'null randread 4k QD32 packed',
                              'null randread 4k QD32 rewritten'}, names)
        self.assertIn('pinned', out.lower())
        goals = {g['name']: g for g in data['goals']}
        self.assertIsInstance(goals["null randread 4k QD1, IOPS, over SPDK's"]['met'], bool)
        self.assertIsNone(goals['malloc randread 4k QD32, over memcpy']['met'])
        for g in data['goals']:
            self.assertIn(g['name'], out)
        self.check_svg(paths['svg'], ['ours', 'IOPS', data['machine']['kernel']])
        with open(paths['markdown']) as f:
            self.assertIn('| null randread 4k QD1 | ours |', f.read())
        # And again from the file, into a page.
        with open(paths['markdown'], 'w') as f:
            f.write('before\n<!-- make bench -->\nold\n<!-- /make bench -->\nafter\n')
        self.run_py('--from', paths['json'], '--svg', paths['svg'] + '2',
                    '--markdown', paths['markdown'])
        with open(paths['markdown']) as f:
            page = f.read()
        self.assertRegex(page, r'(?s)^before\n.*\| null randread 4k QD1 \| ours \|.*\nafter\n$')
        self.assertNotIn('old', page)
        with open(paths['svg']) as a, open(paths['svg'] + '2') as b:
            self.assertEqual(a.read(), b.read())

    def test_limits_and_peers(self):
        data, out, paths = self.measure('randread 4k QD1')
        cases = {c['name']: c for c in data['cases']}
        self.assertIn('memcpy', cases['malloc randread 4k QD1']['ours_over'])
        disk = 'skip: the disk file' not in out
        if disk and data['machine']['qemu'] and 'skip: the peer' not in out:
            self.assertIn('qsd', cases['file randread 4k QD1']['ours_over'])
        if disk and data['machine']['fio']:
            for who in ('fio', 'fio busy'):
                self.assertIn(who, cases['file randread 4k QD1']['ours_over'])
            self.assertIn('fio', cases['file randread 4k QD1 sleeping']['ours_over'])
            self.assertEqual(len(data['setup']['still']), 2)    # QD1 and QD128 match
            self.assertIn('stood still for', out)
        if os.geteuid() == 0 and shutil.which('mkfs.ext4'):
            self.assertIn('ours', cases['cached randread 4k QD1']['who'])
        self.check_svg(paths['svg'], ['memcpy', 'malloc'])

    def test_a_running_target(self):
        t = self.target('0x1')
        path = self.ctrlr(t, 'c0', self.null(t))
        out = self.run_py('--socket', path, '--rpc', t.sock, '--rounds', '1', '--runtime', '0.1')
        self.assertIn('socket randread 4k QD128', out)


if __name__ == '__main__':
    spindle.run_tests()
