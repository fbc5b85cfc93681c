#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""virtio-blk request by request: every type, layout and limit, what each is answered, what the
disk holds afterwards, and which writes must be on stable storage before they are answered."""
import os
import struct

from vhostcase import F, MIB, WAIT, VhostCase, pattern, spindle

TIB = 1 << 40
MOST = 0xffffffff       # sectors, the most that one range can name
WCE_OFFSET = 32


class Layouts(VhostCase):
    def test_header_and_status_anywhere(self):
        t = self.target()
        path = self.disk(t)
        for opts in ({}, {'indirect': True}, {'legacy': True, 'event_idx': True}):
            fe = self.connect(path, **opts)
            data = pattern(4096, 3)
            for how in (0, F.HOW_HDR_PIECES, F.HOW_HDR_JOINED, F.HOW_DIRECT):
                fe.write(0, bytes(4096))
                fe.write(0, data, how=how)
                self.assertEqual(fe.read(0, 4096), data)
            for how in (F.HOW_STATUS_TAIL, F.HOW_STATUS_TAIL | F.HOW_HDR_PIECES,
                        F.HOW_STATUS_TAIL | F.HOW_DIRECT):
                self.assertEqual(fe.read(0, 4096, how=how), data)
            fe.destroy()

    def test_one_descriptor_for_all_a_flush_needs(self):
        # Header with trailing bytes, status at the end of a larger buffer.
        t = self.target()
        fe = self.connect(self.disk(t))
        gpa = fe.alloc(256)
        fe.mem_write(gpa, struct.pack('<IIQ', F.T_FLUSH, 0, 0) + b'\xee' * 100)
        q = fe.q[0]
        q.submit_chain([(gpa, 100, False), (gpa + 128, 64, True)], status_gpa=gpa + 191)
        done = q.wait_all(1, WAIT)[0]
        self.assertEqual(done.status, F.S_OK)
        self.assertEqual(fe.mem_read(gpa + 128, 63), bytes(63))

    def test_byte_by_byte(self):
        # 16 + 512 + 1 descriptors of one byte each, and status in the middle of nowhere.
        t = self.target()
        fe = self.connect(self.disk(t), queue_size=1024)
        gpa = fe.alloc(2048)
        q = fe.q[0]
        for write in (True, False):
            fe.mem_write(gpa, struct.pack('<IIQ', F.T_OUT if write else F.T_IN, 0, 5))
            if write:
                fe.mem_write(gpa + 16, pattern(512, 7))
            else:
                fe.mem_write(gpa + 16, bytes(512))
            q.submit_chain([(gpa + i, 1, i >= 16 and not write) for i in range(528)]
                           + [(gpa + 1000, 1, True)], status_gpa=gpa + 1000)
            done = q.wait_all(1, WAIT)[0]
            self.assertEqual((done.status, done.len), (F.S_OK, 1 if write else 513))
        self.assertEqual(fe.mem_read(gpa + 16, 512), pattern(512, 7))

    def many_segments(self, fe, count, how, sizes=(512,)):
        q = fe.q[0]
        gpa = fe.alloc(count * 4096, 4096)
        segs = [(gpa + i * 4096, sizes[i % len(sizes)]) for i in range(count)]
        total = sum(n for _, n in segs)
        assert total % 512 == 0
        data = pattern(total, count)
        at = 0
        for address, n in segs:
            fe.mem_write(address, data[at:at + n])
            at += n
        q.submit(F.T_OUT, 9, segs, how=how)
        done = q.wait_all(1, WAIT)[0]
        self.assertEqual((done.status, done.len), (F.S_OK, 1))
        for address, n in segs:
            fe.mem_write(address, bytes(n))
        q.submit(F.T_IN, 9, segs, how=how)
        done = q.wait_all(1, WAIT)[0]
        self.assertEqual((done.status, done.len), (F.S_OK, total + 1))
        self.assertEqual(b''.join(fe.mem_read(a, n) for a, n in segs), data)

    def test_segments_far_beyond_seg_max(self):
        t = self.target()
        for bdev in (self.malloc(t), self.file(t, 'f0'), self.file(t, 'f1', kind='aio')):
            with self.subTest(bdev=bdev):
                fe = self.connect(self.ctrlr(t, 'c_' + bdev, bdev), queue_size=1024,
                                  indirect=True)
                self.assertLess(struct.unpack_from('<I', fe.get_config(12, 4))[0], 515)
                self.many_segments(fe, 515, F.HOW_INDIRECT)       # Windows
                self.many_segments(fe, 1024, F.HOW_INDIRECT, (4096,))
                self.many_segments(fe, 1024, F.HOW_INDIRECT, (1, 511, 2048, 3072))
                self.many_segments(fe, 1022, F.HOW_DIRECT, (512,))
                # In a ring much smaller than the chain.
                small = self.connect(t.path('c_' + bdev), queue_size=16, indirect=True)
                self.many_segments(small, 1024, F.HOW_INDIRECT)

    def test_many_long_chains_at_once(self):
        t = self.target()
        self.delay(t, self.malloc(t), 2000)
        fe = self.connect(self.ctrlr(t, 'c0', 'D_m0'), indirect=True, mem_size=128 * MIB)
        gpa = fe.alloc(1024 * 512, 4096)
        segs = [(gpa + i * 512, 512) for i in range(1024)]
        for _ in range(3):
            for _ in range(64):
                fe.q[0].submit(F.T_IN, 0, segs, how=F.HOW_NO_PUBLISH)
            fe.q[0].publish()
            fe.q[0].kick()
            self.assertEqual({d.status for d in fe.q[0].wait_all(64, WAIT)}, {F.S_OK})


class Types(VhostCase):
    def test_get_id(self):
        t = self.target()
        for name in ('m0', 'exactly-20-bytes-abc', 'longer-than-twenty-bytes-it-is'):
            fe = self.connect(self.ctrlr(t, 'c_' + name, self.malloc(t, name)))
            want = name.encode()[:20].ljust(20, b'\0')
            for length in (20, 8, 1, 32):
                gpa = fe.alloc(64)
                fe.mem_write(gpa, b'\x77' * 64)
                fe.q[0].submit(F.T_GET_ID, 0, [(gpa, length)])
                done = fe.q[0].wait_all(1, WAIT)[0]
                self.assertEqual(done.status, F.S_OK)
                n = min(length, 20)
                self.assertEqual(fe.mem_read(gpa, 64), want[:n] + b'\x77' * (64 - n))
                self.assertGreaterEqual(done.len, n + 1)
            # In two pieces.
            fe.q[0].submit(F.T_GET_ID, 0, [(gpa, 3), (gpa + 32, 17)])
            self.assertEqual(fe.q[0].wait_all(1, WAIT)[0].status, F.S_OK)
            self.assertEqual(fe.mem_read(gpa, 3) + fe.mem_read(gpa + 32, 17), want)

    def test_flush(self):
        t = self.target()
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        fe.flush()
        # It reaches the disk: the disk can refuse it.
        self.inject(t, name, 'flush', 'failure')
        self.check_fails(F.S_IOERR, fe.flush)
        fe.flush()

    def test_unknown_types(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        for rtype in (2, 3, 5, 6, 7, 9, 10, 12, F.T_SECURE_ERASE, 15, 16, 0x80000000, 0xffffffff):
            for out, in_len in ((b'', 0), (bytes(512), 0), (b'', 512)):
                status, _ = fe.request(rtype, 0, out, in_len)
                self.assertEqual(status, F.S_UNSUPP, f'type {rtype:x}')
        self.check_io(fe)

    def test_types_without_their_feature(self):
        # A driver that has not acknowledged DISCARD and WRITE_ZEROES does not get them.
        t = self.target()
        fe = self.connect(self.disk(t), features_off=1 << F.F_DISCARD | 1 << F.F_WRITE_ZEROES)
        fe.write(0, b'x' * 512)
        self.check_fails(F.S_UNSUPP, fe.discard, [(0, 1)])
        self.check_fails(F.S_UNSUPP, fe.write_zeroes, [(0, 1)])
        self.assertEqual(fe.read(0, 512), b'x' * 512)

    def test_range(self):
        t = self.target()
        fe = self.connect(self.disk(t, mib=1))
        end = MIB // 512
        fe.write(end - 1, b'e' * 512)
        for sector, length in ((end, 512), (end - 1, 1024), (end + 1, 512), (0, MIB + 512),
                               ((1 << 64) - 1, 512), (1 << 55, 512), ((1 << 55) - 1, 512),
                               ((1 << 55) - 1, 1024), (1 << 63, 512)):
            with self.subTest(sector=sector, length=length):
                self.check_fails(F.S_IOERR, fe.read, sector, length)
                self.check_fails(F.S_IOERR, fe.write, sector, b'w' * length)
        self.assertEqual(fe.read(end - 1, 512), b'e' * 512)
        self.assertEqual(fe.read(0, MIB), bytes(MIB - 512) + b'e' * 512)

    def test_parts_of_sectors(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        for length in (1, 511, 513, 1023):
            self.check_fails(F.S_IOERR, fe.read, 0, length)
            self.check_fails(F.S_IOERR, fe.write, 0, b'p' * length)
        self.assertEqual(fe.read(0, 1024), bytes(1024))

    def test_4k_blocks(self):
        t = self.target()
        for bdev in (self.malloc(t, block_size=4096), self.file(t, block_size=4096)):
            with self.subTest(bdev=bdev):
                fe = self.connect(self.ctrlr(t, 'c_' + bdev, bdev))
                self.assertEqual(struct.unpack('<I', fe.get_config(20, 4))[0], 4096)
                self.assertEqual(fe.capacity, 16 * MIB // 512)
                self.check_io(fe, sector=8)
                for sector, length in ((0, 512), (1, 4096), (7, 8192), (8, 2048), (0, 4608)):
                    self.check_fails(F.S_IOERR, fe.read, sector, length)
                    self.check_fails(F.S_IOERR, fe.write, sector, bytes(length))
                for ranges in ([(1, 8)], [(8, 4)], [(0, 8), (12, 4)]):
                    self.check_fails(F.S_IOERR, fe.write_zeroes, ranges)
                    self.check_fails(F.S_IOERR, fe.discard, ranges)
                self.assertEqual(fe.read(8, 4096), pattern(4096))
                fe.write_zeroes([(8, 8)])
                self.assertEqual(fe.read(8, 4096), bytes(4096))

    def test_nothing_to_do(self):
        # No data at all: no reason to fail, and none to touch anything.
        t = self.target()
        fe = self.connect(self.disk(t))
        for rtype in (F.T_IN, F.T_OUT):
            status, _ = fe.request(rtype, 0)
            self.assertIn(status, (F.S_OK, F.S_IOERR))
        self.check_io(fe)


class Ranges(VhostCase):
    def disks(self, t):
        return (self.malloc(t), self.file(t, 'f0'), self.file(t, 'f1', kind='aio'),
                self.error(t, self.malloc(t, 'm1')))

    def test_several_segments(self):
        t = self.target()
        for bdev in self.disks(t):
            with self.subTest(bdev=bdev):
                fe = self.connect(self.ctrlr(t, 'c_' + bdev, bdev))
                for call, flags in ((fe.write_zeroes, 0), (fe.write_zeroes, F.UNMAP),
                                    (fe.discard, 0)):
                    fe.write(0, b'\xaa' * 65536)
                    call([(1, 2, flags), (9, 7, flags), (100, 1, flags), (0, 0, flags)])
                    want = bytearray(b'\xaa' * 65536)
                    for sector, n in ((1, 2), (9, 7), (100, 1)):
                        want[sector * 512:(sector + n) * 512] = bytes(n * 512)
                    self.assertEqual(fe.read(0, 65536), bytes(want))

    def test_as_many_segments_as_told(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        c = fe.get_config(0, 256)
        discard_seg, = struct.unpack_from('<I', c, 40)
        zeroes_seg, = struct.unpack_from('<I', c, 52)
        for call, most in ((fe.discard, discard_seg), (fe.write_zeroes, zeroes_seg)):
            fe.write(0, b'\xbb' * 65536)
            call([(4 * i, 1) for i in range(most)])
            for i in range(most):
                self.assertEqual(fe.read(4 * i, 1024), bytes(512) + b'\xbb' * 512)
            self.check_fails(F.S_IOERR, call, [(64 + i, 1) for i in range(most + 1)])
            self.assertEqual(fe.read(64, 512), b'\xbb' * 512)

    def test_unknown_flags(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        fe.write(0, b'f' * 8192)
        for call, flags in ((fe.discard, 1), (fe.discard, 2), (fe.discard, 1 << 31),
                            (fe.write_zeroes, 2), (fe.write_zeroes, 3),
                            (fe.write_zeroes, 0xfffffffe)):
            self.check_fails(F.S_UNSUPP, call, [(0, 8, flags)])
            # One of several: none is carried out.
            self.check_fails(F.S_UNSUPP, call, [(0, 8), (8, 8, flags)])
        self.assertEqual(fe.read(0, 8192), b'f' * 8192)

    def test_bad_payloads(self):
        t = self.target()
        fe = self.connect(self.disk(t, mib=1))
        fe.write(0, b'f' * 8192)
        end = MIB // 512
        good = F.pack_range(0, 1)
        for rtype in (F.T_DISCARD, F.T_WRITE_ZEROES):
            for payload in (b'', good[:15], good + b'\0', good[:8], good * 2 + good[:3],
                            good + F.pack_range(end, 1), good + F.pack_range(end - 1, 2),
                            good + F.pack_range((1 << 64) - 1, 1), good + F.pack_range(1 << 55, 1),
                            good + F.pack_range(1, MOST), F.pack_range((1 << 64) - 8, 16)):
                status, _ = fe.request(rtype, 0, payload)
                self.assertEqual(status, F.S_IOERR, payload)
        self.assertEqual(fe.read(0, 8192), b'f' * 8192)

    def test_four_gib_minus_one_sectors(self):
        # 2 TiB in one range: nothing may count it in 32 bits.
        t = self.target()
        t.rpc('bdev_null_create', name='n0', num_blocks=3 * TIB // 512, block_size=512)
        fe = self.connect(self.ctrlr(t, 'c0', 'n0'))
        end = 3 * TIB // 512
        self.assertEqual(fe.capacity, end)
        for call in (fe.write_zeroes, fe.discard):
            call([(0, MOST)])
            call([(end - MOST, MOST)])
            call([(0, MOST), (MOST, end - MOST)])
            self.check_fails(F.S_IOERR, call, [(end - MOST + 1, MOST)])
            self.check_fails(F.S_IOERR, call, [(0, 1), (end - 1, MOST)])
        self.assertEqual(self.stats(t, 'n0')['bytes_unmapped'], MOST * 512 * 2 + 3 * TIB)

    def test_four_gib_minus_one_sectors_of_a_file(self):
        t = self.target()
        name = self.file(t, 'f0', mib=3 * TIB // MIB)
        fe = self.connect(self.ctrlr(t, 'c0', name))
        # The file must not really be written: only unmapping is quick.
        for call, flags in ((fe.discard, 0), (fe.write_zeroes, F.UNMAP)):
            for sector in (7, MOST - 1 & ~7, MOST + 8 & ~7, (1 << 32) + 64):
                fe.write(sector, b'k' * 4096)
            call([(8, MOST - 8, flags)], timeout=60)
            self.assertEqual(fe.read(7, 1024), b'k' * 512 + bytes(512))
            self.assertEqual(fe.read(MOST - 1 & ~7, 4096), bytes(7 * 512) + b'k' * 512)
            self.assertEqual(fe.read((1 << 32) + 64, 4096), b'k' * 4096)

    def test_unmap_frees_space_and_no_unmap_keeps_it(self):
        t = self.target()
        for kind in ('uring', 'aio'):
            name = self.file(t, 'f' + kind, mib=8, kind=kind)
            fe = self.connect(self.ctrlr(t, 'c' + kind, name))

            def blocks():
                fe.flush()
                return os.stat(t.path(name + '.img')).st_blocks

            full = 4 * MIB // 512
            for flags, call, left in ((F.UNMAP, fe.write_zeroes, 0), (0, fe.discard, 0),
                                      (0, fe.write_zeroes, full)):
                fe.write(0, b'\xcc' * (4 * MIB))
                self.assertGreaterEqual(blocks(), full)
                call([(0, full, flags)])
                if left:
                    self.assertGreaterEqual(blocks(), left)
                else:
                    self.assertLess(blocks(), full // 4)
                self.assertEqual(fe.read(0, 4 * MIB), bytes(4 * MIB))


class ReadOnly(VhostCase):
    def check_readonly(self, fe):
        self.assertTrue(fe.c.offered >> F.F_RO & 1)
        before = fe.read(0, 8192)
        self.check_fails(F.S_IOERR, fe.write, 0, b'w' * 512)
        for rtype in (F.T_DISCARD, F.T_WRITE_ZEROES):
            status, _ = fe.request(rtype, 0, F.pack_range(0, 8))
            self.assertIn(status, (F.S_IOERR, F.S_UNSUPP))
        fe.flush()
        self.assertTrue(fe.get_id())
        self.assertEqual(fe.read(0, 8192), before)

    def test_readonly_controller(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        fe.write(0, pattern(8192, 4))
        fe.destroy()
        self.wait_sessions(t, 0)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        ro = self.connect(self.ctrlr(t, 'r0', 'm0', readonly=True))
        self.check_readonly(ro)
        self.assertEqual(ro.read(0, 8192), pattern(8192, 4))
        self.assertTrue(t.rpc('vhost_get_controllers')[0]['backend_specific']['block']['readonly'])

    def test_readonly_whatever_the_driver_says(self):
        # A driver that takes bits that were not offered is thrown out, so it cannot claim them.
        t = self.target()
        path = self.disk(t, readonly=True)
        fe = self.connect(path, no_start=True, features_force=1 << F.F_DISCARD)
        with self.assertRaises(OSError):
            fe.start()
            fe.read(0, 512)
        fe = self.connect(path, features_off=1 << F.F_RO)
        self.check_readonly(fe)

    def test_readonly_file(self):
        t = self.target()
        with open(t.path('f0.img'), 'wb') as f:
            f.write(pattern(MIB, 5))
        os.chmod(t.path('f0.img'), 0o444)
        for kind in ('aio', 'uring'):
            name = self.file(t, 'f0', kind=kind, readonly=True)
            fe = self.connect(self.ctrlr(t, 'c0', name))
            self.check_readonly(fe)
            fe.destroy()
            t.rpc('vhost_delete_controller', ctrlr='c0')
            t.rpc(f'bdev_{kind}_delete', name=name)
        with open(t.path('f0.img'), 'rb') as f:
            self.assertEqual(f.read(), pattern(MIB, 5))


class Writethrough(VhostCase):
    """A disk with a volatile cache: which writes are followed by a flush? An injected failure of
    the flush tells: it fails the write."""

    def caching(self, t):
        name = self.error(t, self.file(t))
        return name, self.ctrlr(t, 'c0', name)

    def flushes(self, t, name, fe, call, *args):
        self.inject(t, name, 'flush', 'failure')
        try:
            call(*args)
            # Not consumed: this one meets it.
            self.check_fails(F.S_IOERR, fe.flush)
            return False
        except F.BlkError as e:
            self.assertEqual(e.status, F.S_IOERR)
            fe.flush()
            return True

    def test_config_wce(self):
        t = self.target()
        name, path = self.caching(t)
        fe = self.connect(path)
        self.assertEqual(fe.get_config(WCE_OFFSET, 1), b'\1')
        calls = ((fe.write, 0, b'w' * 512), (fe.write_zeroes, [(8, 8), (32, 8)]),
                 (fe.discard, [(16, 8)]))
        for value in (1, 0, 1, 0):
            fe.set_config(WCE_OFFSET, bytes([value]))
            fe.get_features()
            for call in calls:
                self.assertEqual(self.flushes(t, name, fe, *call), value == 0, (value, call))
            self.assertFalse(self.flushes(t, name, fe, fe.read, 0, 512))
        self.assertEqual(fe.read(0, 512), b'w' * 512)

    def test_driver_that_cannot_flush(self):
        t = self.target()
        name, path = self.caching(t)
        fe = self.connect(path, features_off=1 << F.F_FLUSH | 1 << F.F_CONFIG_WCE)
        self.assertTrue(self.flushes(t, name, fe, fe.write, 0, b'w' * 512))
        fe.destroy()
        fe = self.connect(path, features_off=1 << F.F_CONFIG_WCE)
        self.assertFalse(self.flushes(t, name, fe, fe.write, 0, b'w' * 512))

    def test_failed_write_is_not_flushed(self):
        t = self.target()
        name, path = self.caching(t)
        fe = self.connect(path)
        fe.set_config(WCE_OFFSET, b'\0')
        self.inject(t, name, 'write', 'failure')
        self.inject(t, name, 'flush', 'failure')
        self.check_fails(F.S_IOERR, fe.write, 0, bytes(512))
        self.check_fails(F.S_IOERR, fe.flush)
        fe.write(0, bytes(512))


class Errors(VhostCase):
    def test_what_the_disk_says(self):
        t = self.target()
        name = self.error(t, self.malloc(t))
        fe = self.connect(self.ctrlr(t, 'c0', name))
        for io_type, call, args in (('read', fe.read, (0, 512)),
                                    ('write', fe.write, (0, b'x' * 512)),
                                    ('unmap', fe.discard, ([(0, 8)],)),
                                    ('write_zeroes', fe.write_zeroes, ([(0, 8)],))):
            for error in ('failure', 'nomem'):
                self.inject(t, name, io_type, error, num=2)
                for _ in range(2):
                    self.check_fails(F.S_IOERR, call, *args)
                call(*args)

    def test_full_file_system(self):
        # ENOSPC reaches the guest as an error, and the disk lives on.
        spindle.need_root()
        t = self.target()
        mount = t.path('small')
        os.mkdir(mount)
        image = t.path('fs.img')
        with open(image, 'wb') as f:
            f.truncate(16 * MIB)
        if os.system(f'mkfs.ext4 -q {image} && mount -o loop {image} {mount}') != 0:
            self.skipTest('cannot make a small file system')
        self.addCleanup(os.system, f'umount {mount}')
        self.addCleanup(t.kill)
        with open(mount + '/disk', 'wb') as f:
            f.truncate(64 * MIB)
        t.rpc('bdev_uring_create', name='u0', filename=mount + '/disk', block_size=512)
        fe = self.connect(self.ctrlr(t, 'c0', 'u0'))
        failed = 0
        for i in range(32):
            try:
                fe.write(i * 2048, b'z' * MIB)
            except F.BlkError as e:
                self.assertEqual(e.status, F.S_IOERR)
                failed += 1
        self.assertGreater(failed, 8)
        fe.discard([(0, 4 * 2048)])
        self.check_io(fe, sector=20 * 2048)
        t.stop()


if __name__ == '__main__':
    spindle.run_tests()
