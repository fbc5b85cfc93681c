#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""vhost-user as clients speak it: their orders of starting, what is answered and what must not
be, the configuration space, status and reset, connections that come, go and come back."""
import os
import socket
import struct
import threading
import time

from vhostcase import F, MIB, SLOW, WAIT, VhostCase, fd_count, spindle

WCE_OFFSET = 32
CONFIG_BYTES = 60       # of struct virtio_blk_config up to the write zeroes fields


def bits(*numbers):
    return sum(1 << n for n in numbers)


class Handshake(VhostCase):
    def start_and_use(self, path, **opts):
        fe = self.connect(path, queues=2, **opts)
        for q in range(2):
            self.check_io(fe, q=q, sector=64 * q, seed=q + 5)
        # Every expected answer has been read: one more would be a second ack.
        self.assertTrue(fe.quiet(0.02), 'an answer that nobody asked for')
        fe.stop()
        self.assertTrue(fe.quiet(0.02))
        fe.destroy()

    def test_orders_of_clients(self):
        t = self.target('0x3')
        path = self.disk(t)
        for style in F.STYLES:
            for flags in ({}, {'indirect': True, 'event_idx': True}, {'mem_table': True},
                          {'legacy': True}, {'status': True}, {'pf_need_reply': True},
                          {'no_backend_channel': True, 'no_kick_fd': True},
                          {'no_call_fd': True}):
                if style == 'libblkio' and 'mem_table' in flags:
                    continue    # it insists on CONFIGURE_MEM_SLOTS
                with self.subTest(style=style, **flags):
                    self.start_and_use(path, style=style, **flags)

    def test_client_without_protocol_features(self):
        # Bit 30 is not taken: no ENABLE is ever sent and the ring runs from the kick fd on.
        t = self.target()
        fe = self.connect(self.disk(t), no_protocol_features=True)
        self.assertEqual(fe.c.protocol, 0)
        self.check_io(fe)
        fe.q[0].stop()

    def test_features_offered(self):
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True)
        must = bits(F.F_SEG_MAX, F.F_BLK_SIZE, F.F_FLUSH, F.F_TOPOLOGY, F.F_CONFIG_WCE, F.F_MQ,
                    F.F_DISCARD, F.F_WRITE_ZEROES, F.F_INDIRECT, F.F_EVENT_IDX,
                    F.F_PROTOCOL_FEATURES, F.F_VERSION_1)
        offered = fe.get_features()
        self.assertEqual(offered & must, must)
        self.assertFalse(offered & bits(F.F_RO, F.F_RING_PACKED, F.F_SIZE_MAX, F.F_GEOMETRY))
        must = bits(F.PF_MQ, F.PF_REPLY_ACK, F.PF_BACKEND_REQ, F.PF_CONFIG, F.PF_BACKEND_SEND_FD,
                    F.PF_RESET_DEVICE, F.PF_CONFIGURE_MEM_SLOTS, F.PF_STATUS)
        offered = fe.get_protocol_features()
        self.assertEqual(offered & must, must)
        self.assertFalse(offered & bits(F.PF_INBAND_NOTIFICATIONS))
        fe.set_protocol_features(must)
        self.assertGreaterEqual(fe.get_queue_num(), 16)
        self.assertGreaterEqual(fe.get_max_mem_slots(), 32)

    def test_readonly_feature(self):
        t = self.target()
        fe = self.connect(self.disk(t, readonly=True), no_start=True)
        offered = fe.get_features()
        self.assertTrue(offered & bits(F.F_RO))
        self.assertFalse(offered & bits(F.F_DISCARD, F.F_WRITE_ZEROES))

    def test_own_reply_is_the_only_one(self):
        t = self.target()
        fe = self.connect(self.disk(t), style='libblkio')
        config = struct.pack('<III', 0, 8, 0) + bytes(8)
        for request, payload, size in (
                (F.GET_FEATURES, b'', 8), (F.GET_PROTOCOL_FEATURES, b'', 8),
                (F.GET_QUEUE_NUM, b'', 8), (F.GET_MAX_MEM_SLOTS, b'', 8),
                (F.GET_CONFIG, config, len(config)),
                (F.GET_VRING_BASE, struct.pack('<II', 0, 0), 8)):
            with self.subTest(request=request):
                fe.send_raw(request, payload, flags=F.VERSION | F.NEED_REPLY)
                answer = fe.recv()
                self.assertEqual((answer.request, answer.flags, answer.size),
                                 (request, F.VERSION | F.REPLY, size))
                self.assertTrue(fe.quiet(0.03), 'answered twice')

    def test_ack_of_set_protocol_features(self):
        # It goes by the bits that the very message sets.
        t = self.target()
        path = self.disk(t)
        for features, acked in ((bits(F.PF_REPLY_ACK, F.PF_CONFIG), True),
                                (bits(F.PF_CONFIG), False)):
            fe = self.connect(path, no_start=True)
            fe.send_raw(F.SET_PROTOCOL_FEATURES, struct.pack('<Q', features),
                        flags=F.VERSION | F.NEED_REPLY)
            if acked:
                answer = fe.recv()
                self.assertEqual((answer.request, answer.payload),
                                 (F.SET_PROTOCOL_FEATURES, bytes(8)))
            self.assertTrue(fe.quiet(0.05))
            # Without REPLY_ACK the flag means nothing.
            fe.send_raw(F.SET_OWNER, flags=F.VERSION | F.NEED_REPLY)
            if acked:
                self.assertEqual(fe.recv().request, F.SET_OWNER)
            self.assertTrue(fe.quiet(0.05))
            fe.get_features()
            fe.destroy()

    def test_features_not_offered_are_refused(self):
        t = self.target()
        path = self.disk(t)
        for request, value in ((F.SET_FEATURES, bits(F.F_VERSION_1, 63)),
                               (F.SET_FEATURES, bits(F.F_RING_PACKED)),
                               (F.SET_PROTOCOL_FEATURES, bits(F.PF_INBAND_NOTIFICATIONS)),
                               (F.SET_PROTOCOL_FEATURES, bits(63))):
            fe = self.connect(path, no_start=True)
            fe.send_raw(request, struct.pack('<Q', value))
            self.check_closed(fe)
            fe.destroy()

    def test_pipelined_messages(self):
        # Answers come in order, one for each, however many messages arrive at once.
        t = self.target()
        fe = self.connect(self.disk(t), no_start=True)
        one = struct.pack('<III', F.GET_FEATURES, F.VERSION, 0)
        two = struct.pack('<III', F.GET_PROTOCOL_FEATURES, F.VERSION, 0)
        fe.send_bytes((one + two) * 50)
        got = [fe.recv().request for _ in range(100)]
        self.assertEqual(got, [F.GET_FEATURES, F.GET_PROTOCOL_FEATURES] * 50)
        self.assertTrue(fe.quiet())


class OneByteAtATime:
    """Passes on what a front end sends byte by byte, fds where they were, and back at once."""

    def __init__(self, path):
        self.front, self.near = socket.socketpair()
        self.far = socket.socket(socket.AF_UNIX)
        self.far.connect(path)
        self.threads = [threading.Thread(target=self.forward, daemon=True),
                        threading.Thread(target=self.backward, daemon=True)]
        for thread in self.threads:
            thread.start()

    def forward(self):
        while True:
            data, fds, _, _ = socket.recv_fds(self.near, 1, 16)
            if not data:
                break
            socket.send_fds(self.far, [data], fds)
            for fd in fds:
                os.close(fd)
        self.far.shutdown(socket.SHUT_RDWR)

    def backward(self):
        while True:
            data, fds, _, _ = socket.recv_fds(self.far, 4096, 1)
            if not data:
                break
            socket.send_fds(self.near, [data], fds)
            for fd in fds:
                os.close(fd)
        self.near.close()

    def close(self):
        self.front.close()
        for thread in self.threads:
            thread.join(5)
        self.far.close()


class Framing(VhostCase):
    def test_byte_by_byte(self):
        t = self.target()
        path = self.disk(t)
        for flags in ({}, {'mem_table': True}):
            proxy = OneByteAtATime(path)
            fe = F.Frontend(style='qemu11', queues=2, timeout=WAIT, **flags)
            self.addCleanup(fe.destroy)
            fe.adopt(proxy.front)
            fe.start()
            self.check_io(fe, q=1)
            fe.stop()
            fe.destroy()
            proxy.close()
        self.wait_sessions(t, 0)

    def test_hangup_in_mid_message(self):
        t = self.target()
        path = self.disk(t)
        other = self.connect(path)
        self.check_io(other)
        before = fd_count(t)
        message = struct.pack('<III', F.SET_VRING_KICK, F.VERSION, 8) + struct.pack('<Q', 0)
        for cut in range(1, len(message)):
            fe = self.connect(path, no_start=True)
            with open('/dev/null') as f:
                fe.send_bytes(message[:cut], fds=[f.fileno()])
            fe.destroy()
        self.wait_sessions(t, 1)
        self.check_fds(t, before)
        self.check_io(other)

    def test_slow_message_delays_nobody(self):
        t = self.target()
        path = self.disk(t)
        slow = self.connect(path, no_start=True)
        slow.send_bytes(struct.pack('<III', F.SET_VRING_NUM, F.VERSION, 8) + b'abc')
        fe = self.connect(path)
        self.check_io(fe)
        t.rpc('spdk_get_version')
        self.assertTrue(slow.quiet(0.05))


class Config(VhostCase):
    def test_every_size(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        whole = fe.get_config(0, 256)
        self.assertEqual(whole[CONFIG_BYTES:], bytes(256 - CONFIG_BYTES))
        for size in range(1, 257):
            payload = struct.pack('<III', 0, size, 0) + bytes(size)
            answer = fe.call(F.GET_CONFIG, payload)
            self.assertEqual(answer.size, 12 + size)
            self.assertEqual(answer.payload[:12], payload[:12])
            self.assertEqual(answer.payload[12:], whole[:size])

    def test_in_pieces(self):
        # User-Mode Linux reads field by field.
        t = self.target()
        fe = self.connect(self.disk(t))
        whole = fe.get_config(0, 256)
        for piece in (1, 2, 4, 8, 24):
            got = b''.join(fe.get_config(at, min(piece, 256 - at)) for at in range(0, 256, piece))
            self.assertEqual(got, whole)

    def test_beyond_the_end(self):
        # An empty payload is the answer for "no", and the session goes on.
        t = self.target()
        fe = self.connect(self.disk(t))
        for offset, size, data in ((200, 100, 100), (256, 1, 1), (255, 2, 2),
                                   (0xffffffff, 2, 2), (0, 0xffffffff, 8), (0, 8, 4), (0, 4, 8)):
            with self.subTest(offset=offset, size=size, data=data):
                answer = fe.call(F.GET_CONFIG, struct.pack('<III', offset, size, 0) + bytes(data))
                self.assertEqual((answer.request, answer.size), (F.GET_CONFIG, 0))
        self.check_io(fe)

    def test_fields(self):
        t = self.target()
        t.rpc('bdev_malloc_create', name='m0', num_blocks=4096, block_size=512,
              physical_block_size=4096)
        fe = self.connect(self.ctrlr(t, 'c0', 'm0'))
        c = fe.get_config(0, 256)
        (capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_exp,
         alignment, min_io, opt_io, wce, _, queues, discard, discard_seg, discard_align, zeroes,
         zeroes_seg, may_unmap) = struct.unpack_from('<QIIHBBIBBHIBBHIIIIIB', c)
        self.assertEqual((capacity, size_max, seg_max), (4096, 0, 126))
        self.assertEqual((cylinders, heads, sectors), (0, 0, 0))
        self.assertEqual((blk_size, physical_exp, alignment, min_io), (512, 3, 0, 8))
        self.assertIn(wce, (0, 1))
        self.assertGreaterEqual(queues, 16)
        self.assertGreaterEqual(discard, 0xffffffff >> 9)
        self.assertGreaterEqual(zeroes, 0xffffffff >> 9)
        self.assertGreaterEqual(min(discard_seg, zeroes_seg), 1)
        self.assertGreaterEqual(discard_align, 1)
        self.assertEqual(may_unmap, 1)

    def test_set_writeback(self):
        t = self.target()
        fe = self.connect(self.disk(t), style='libblkio')
        for value in (0, 1, 0, 1):
            fe.set_config(WCE_OFFSET, bytes([value]))
            self.assertEqual(fe.get_config(WCE_OFFSET, 1), bytes([value]))
            self.check_io(fe)

    def test_set_anything_else(self):
        t = self.target()
        fe = self.connect(self.disk(t), style='libblkio')
        before = fe.get_config(0, 256)
        for offset, data in ((0, bytes(8)), (WCE_OFFSET, b'\2'), (WCE_OFFSET, b'\0\0'),
                             (WCE_OFFSET - 1, b'\0'), (256, b'\0'), (0xffffffff, b'\0')):
            with self.subTest(offset=offset, data=data):
                with self.assertRaises(OSError) as caught:
                    fe.set_config(offset, data)
                self.assertEqual(caught.exception.errno, F.errno.EREMOTEIO)
        self.assertEqual(fe.get_config(0, 256), before)
        self.check_io(fe)

    def test_resize_is_announced(self):
        t = self.target()
        self.null(t, 'n0', mib=16)
        fe = self.connect(self.ctrlr(t, 'c0', 'n0'))
        mute = self.connect(t.path('c0'), no_backend_channel=True)
        self.assertEqual(fe.capacity, 16 * MIB // 512)
        self.check_fails(F.S_IOERR, fe.read, 16 * MIB // 512, 512)
        t.rpc('bdev_null_resize', name='n0', new_size=32)
        fe.wait_config_change(1, WAIT)
        self.assertEqual(fe.c.config_changes, 1)
        self.assertEqual(fe.get_config(0, 8), struct.pack('<Q', 32 * MIB // 512))
        fe.read(32 * MIB // 512 - 1, 512)
        mute.read(32 * MIB // 512 - 1, 512)
        self.assertEqual(mute.get_config(0, 8), struct.pack('<Q', 32 * MIB // 512))

    def test_grown_file_is_announced(self):
        t = self.target()
        for kind in ('aio', 'uring'):
            with self.subTest(kind=kind):
                name = self.file(t, 'f' + kind, mib=4, kind=kind)
                fe = self.connect(self.ctrlr(t, 'c' + kind, name))
                os.truncate(t.path(name + '.img'), 8 * MIB)
                t.rpc(f'bdev_{kind}_rescan', name=name)
                fe.wait_config_change(1, WAIT)
                self.assertEqual(fe.get_config(0, 8), struct.pack('<Q', 8 * MIB // 512))
                self.check_io(fe, sector=8 * MIB // 512 - 8)


class Reset(VhostCase):
    def test_status(self):
        t = self.target()
        fe = self.connect(self.disk(t), status=True, style='qemu11')
        self.assertEqual(fe.get_status(), 0xf)
        self.check_io(fe)
        fe.set_status(0)
        self.assertEqual(fe.get_status(), 0)
        fe.q[0].submit(F.T_FLUSH, 0)
        fe.q[0].kick()
        time.sleep(0.1)
        self.assertEqual(fe.q[0].poll(), [], 'a ring runs on after the reset')

    def reset_and_restart(self, reset, **opts):
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, **opts)
        self.check_io(fe, q=0)
        self.check_io(fe, q=1, sector=64)
        reset(fe)
        fe.get_features()       # an answer: the reset is over
        for q in fe.q:
            q.submit(F.T_FLUSH, 0)
            q.kick()
        time.sleep(0.1)
        for q in fe.q:
            self.assertEqual(q.poll(), [], 'a ring runs on after the reset')
            q.reset()
        fe.start_rings()
        self.check_io(fe, q=0, seed=3)
        self.check_io(fe, q=1, sector=64, seed=4)
        self.assertTrue(fe.quiet(0.02))

    def test_reset_device(self):
        for style in F.STYLES:
            with self.subTest(style=style):
                self.reset_and_restart(lambda fe: fe.reset_device(), style=style)

    def test_reset_owner(self):
        self.reset_and_restart(lambda fe: fe.reset_owner())

    def test_writeback_outlives_a_reset(self):
        # QEMU stops a guest by a reset and goes on showing it its own copy of the bit.
        t = self.target()
        fe = self.connect(self.disk(t))
        for value in (b'\0', b'\1'):
            fe.set_config(WCE_OFFSET, value)
            fe.reset_device()
            self.assertEqual(fe.get_config(WCE_OFFSET, 1), value)


class Connections(VhostCase):
    def test_one_after_another(self):
        t = self.target()
        path = self.disk(t)
        before = fd_count(t)
        for i in range(20):
            with F.Frontend.connect(path, timeout=WAIT) as fe:
                if i:
                    self.assertEqual(fe.read(8 * (i - 1), 512), bytes([i]) * 512)
                fe.write(8 * i, bytes([i + 1]) * 512)
                if i % 2:
                    fe.stop()
        self.wait_sessions(t, 0)
        self.check_fds(t, before)

    def test_several_at_once(self):
        t = self.target('0x3')
        path = self.disk(t)
        fes = [self.connect(path, queues=2, style=style) for style in list(F.STYLES) * 2]
        for i, fe in enumerate(fes):
            fe.write(8 * i, bytes([i + 1]) * 4096, q=i % 2)
        for fe in fes:
            self.assertEqual(fe.read(0, 4096 * len(fes)),
                             b''.join(bytes([i + 1]) * 4096 for i in range(len(fes))))
        listed = self.sessions(t)
        self.assertEqual(len(listed), len(fes))
        self.assertEqual([s['started'] for s in listed], [True] * len(fes))
        self.assertEqual([s['max_queues'] for s in listed], [2] * len(fes))
        self.assertEqual(len({s['vid'] for s in listed}), len(fes))
        # Whoever goes away takes nobody along.
        for fe in fes[::2]:
            fe.destroy()
        for fe in fes[1::2]:
            self.assertEqual(fe.read(0, 512), b'\1' * 512)
        self.wait_sessions(t, len(fes) // 2)

    def test_reconnect_announces_the_config_once(self):
        # QEMU does not read the configuration again when it comes back.
        t = self.target()
        self.null(t, 'n0', mib=16)
        fe = self.connect(self.ctrlr(t, 'c0', 'n0'), queues=2)
        fe.read(0, 512)
        with self.assertRaises(OSError):
            fe.wait_config_change(1, 0.05)
        fe.close()
        self.wait_sessions(t, 0)
        t.rpc('bdev_null_resize', name='n0', new_size=64)
        fe.reconnect()
        fe.wait_config_change(1, WAIT)
        fe.read(64 * MIB // 512 - 1, 512)
        with self.assertRaises(OSError):
            fe.wait_config_change(2, 0.05 * SLOW)
        self.assertEqual(fe.get_config(0, 8), struct.pack('<Q', 64 * MIB // 512))

    def test_requests_survive_a_reconnect(self):
        # What was completed is not done again; the ring goes on where it was.
        t = self.target()
        fe = self.connect(self.disk(t), queues=2, indirect=True)
        for i in range(10):
            self.check_io(fe, q=i % 2, sector=8 * i, seed=i)
            fe.reconnect()
        for i in range(10):
            self.check_io(fe, q=i % 2, sector=8 * i, seed=i + 1)

    def test_controller_deleted_under_a_front_end(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        self.check_io(fe)
        t.rpc('vhost_delete_controller', ctrlr='c0')
        self.check_closed(fe)
        self.assertFalse(os.path.exists(t.path('c0')))
        self.assertEqual(t.rpc('vhost_get_controllers'), [])
        # The same name can be had again at once.
        fe = self.connect(self.ctrlr(t, 'c0', 'm0'))
        self.assertEqual(fe.read(0, 512)[:8], (1 << 32).to_bytes(8, 'little'))

    def test_bdev_removed_under_a_front_end(self):
        t = self.target()
        fe = self.connect(self.disk(t))
        self.check_io(fe)
        t.rpc('bdev_malloc_delete', name='m0')
        for call, args in ((fe.read, (0, 512)), (fe.write, (0, bytes(512))), (fe.flush, ()),
                           (fe.discard, ([(0, 8)],)), (fe.get_id, ())):
            self.check_fails(F.S_IOERR, call, *args)
        self.assertFalse(fe.closed(0.05))


if __name__ == '__main__':
    spindle.run_tests()
