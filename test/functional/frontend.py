# SPDX-License-Identifier: BSD-3-Clause
"""A vhost-user-blk front end for tests: ctypes over test/frontend (see frontend.h there).

    with Frontend.connect("/var/tmp/vhost.1", queues=4, indirect=True) as fe:
        fe.write(0, b"x" * 4096)
        assert fe.read(0, 4096, q=3) == b"x" * 4096

Three kinds of answer: a request the device refuses raises BlkError (its .status is 1 IOERR or
2 UNSUPP); a protocol or system failure raises OSError with the library's errno (ETIMEDOUT, EPIPE
when the target closed the connection, EREMOTEIO when it refused a message, EPROTO when its answer
made no sense); everything else returns a value. Times are seconds.

fe.q[i] is a Queue with the raw ring; fe.memory(gpa, len) is guest memory as a memoryview. Views
must not outlive the Frontend.
"""
import ctypes as C
import errno
import os
import re
import struct
from collections import namedtuple

import feabi as abi
from feabi import MAX_FDS, lib, library_path    # noqa: F401

NO_GPA = (1 << 64) - 1

# Messages.
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_BASE, SET_LOG_FD, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 6, 7, 8, 9, 10
GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 11, 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 21, 24, 25, 31, 32
RESET_DEVICE, GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = (
    34, 36, 37, 38, 39, 40)
GET_VRING_BASE_SKIP_DRAIN = 45
BACKEND_CONFIG_CHANGE = 2
VERSION, REPLY, NEED_REPLY = 1, 4, 8

# Protocol feature bits.
PF_MQ, PF_LOG_SHMFD, PF_REPLY_ACK, PF_BACKEND_REQ, PF_CONFIG = 0, 1, 3, 5, 9
PF_BACKEND_SEND_FD, PF_INFLIGHT_SHMFD, PF_RESET_DEVICE = 10, 12, 13
PF_INBAND_NOTIFICATIONS, PF_CONFIGURE_MEM_SLOTS, PF_STATUS = 14, 15, 16
PF_GET_VRING_BASE_INFLIGHT, PF_GET_VRING_BASE_SKIP_DRAIN = 20, 23

# Virtio feature bits.
F_SIZE_MAX, F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY = 1, 2, 4, 5, 6, 9, 10
F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 11, 12, 13, 14
F_LOG_ALL, F_ANY_LAYOUT, F_INDIRECT, F_EVENT_IDX, F_PROTOCOL_FEATURES = 26, 27, 28, 29, 30
F_VERSION_1, F_RING_PACKED = 32, 34

# Request types and status bytes.
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES, T_SECURE_ERASE = 0, 1, 4, 8, 11, 13, 14
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
UNMAP = 1   # a flag of a WRITE_ZEROES range

# Descriptor flags, event suppression of packed rings, and how to submit.
DESC_NEXT, DESC_WRITE, DESC_INDIRECT, DESC_AVAIL, DESC_USED = 1, 2, 4, 0x80, 0x8000
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC = 0, 1, 2
PACKED_START = 0x80008000   # the base of a packed ring never used
HOW_DIRECT, HOW_INDIRECT, HOW_NO_PUBLISH, HOW_NO_KICK = 1, 2, 4, 8
HOW_HDR_PIECES, HOW_STATUS_TAIL, HOW_HDR_JOINED = 0x10, 0x20, 0x40

STYLES = {"qemu": 0, "qemu11": 1, "libblkio": 2}
BACKINGS = {"memfd": 0, "huge": 1, "file": 2, "share": 3}
FLAGS = {
    "indirect": 0x1, "event_idx": 0x2, "legacy": 0x4, "mem_table": 0x8, "no_kick_fd": 0x10,
    "no_call_fd": 0x20, "no_backend_channel": 0x40, "no_inflight": 0x80, "no_start": 0x100,
    "pf_need_reply": 0x200, "no_enable": 0x400, "status": 0x800, "no_protocol_features": 0x1000,
    "packed": 0x2000, "base_inflight": 0x4000, "skip_drain": 0x8000,
}

Completion = namedtuple("Completion", "head len cookie status")
Message = namedtuple("Message", "request flags size payload fds")


class BlkError(Exception):
    """A request that came back with a status byte other than OK."""

    def __init__(self, status):
        super().__init__("virtio-blk status %d" % status)
        self.status = status


def _ms(seconds):
    return max(0, int(seconds * 1000))


def _bytes(data):
    data = bytes(data)
    return C.create_string_buffer(data, len(data)) if data else None


def _fds(fds):
    return (C.c_int * len(fds))(*fds) if fds else None


def _segs(segs):
    """Each (gpa, len) or (gpa, len, write)."""
    return (abi.Seg * max(1, len(segs)))(*[
        abi.Seg(s[0], s[1], 1 if len(s) > 2 and s[2] else 0) for s in segs])


def region(gpa, size, backing="memfd", mmap_offset=0, dir=None, share=0, uva=0):
    """A guest memory region for Frontend(regions=[...]) and add_region()."""
    return abi.RegionSpec(gpa, size, mmap_offset, uva, dir.encode() if dir else None,
                       BACKINGS[backing], share)


def pack_range(sector, num_sectors, flags=0):
    """One segment of a DISCARD or WRITE_ZEROES request."""
    return struct.pack("<QII", sector, num_sectors, flags)


class Queue:
    """One virtqueue: requests in flight, and every field of the ring."""

    def __init__(self, vq):
        self._vq, self._l = vq, lib()

    @property
    def vq(self):
        if self._vq is None:
            raise ValueError("front end destroyed")
        return self._vq

    def __getattr__(self, name):
        # The C struct's fields: size, avail_idx, last_used, num_free, in_flight, kicks, ...
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.vq.contents, name)

    # -- requests --

    def submit(self, rtype, sector, segs=(), how=0, cookie=0):
        """Queue a request; data as [(gpa, len)], its direction from the type. -> head"""
        return self._l.fe_submit(self.vq, rtype, sector, _segs(segs), len(segs), how, cookie)

    def submit_chain(self, segs, table_gpa=NO_GPA, status_gpa=NO_GPA, how=0, cookie=0):
        """Queue a chain exactly as given, [(gpa, len, write)]. -> head"""
        return self._l.fe_submit_chain(self.vq, _segs(segs), len(segs), table_gpa, status_gpa,
                                       how, cookie)

    def _completions(self, call, *args):
        out = (abi.Completion * 256)()
        n = call(self.vq, out, 256, *args)
        return [Completion(c.head, c.len, c.cookie, c.status) for c in out[:n]]

    def poll(self):
        return self._completions(self._l.fe_poll)

    def wait(self, timeout=5.0):
        """At least one completion; OSError(ETIMEDOUT) when none came."""
        return self._completions(self._l.fe_wait, _ms(timeout))

    def wait_all(self, count, timeout=5.0):
        """Exactly `count` completions, each wait up to `timeout`."""
        done = []
        while len(done) < count:
            done += self.wait(timeout)
        return done

    def request(self, rtype, sector=0, out=b"", in_len=0, how=0, timeout=5.0):
        """Any request, waited for. -> (status, data)"""
        back = C.create_string_buffer(in_len) if in_len else None
        status = self._l.fe_request(self.vq, rtype, sector, _bytes(out), len(out), back, in_len,
                                    how, _ms(timeout))
        return status, back.raw if back else b""

    def publish(self):
        self._l.fe_publish(self.vq)

    def kick(self, force=True):
        return self._l.fe_kick(self.vq, force)

    def error(self, timeout=1.0):
        """How often the error eventfd was signalled; 0: not within the time."""
        return self._l.fe_vq_error(self.vq, _ms(timeout))

    def call_pending(self, timeout=1.0):
        return self._l.fe_vq_call_pending(self.vq, _ms(timeout))

    # -- messages --

    def start(self, base=None, with_call=True):
        """From a fresh ring's base unless told another."""
        if base is None:
            base = PACKED_START if self.packed else 0
        self._l.fe_vq_start(self.vq, base, with_call)

    def send_addr(self):
        self._l.fe_vq_send_addr(self.vq)

    def enable(self, on=True):
        self._l.fe_vq_enable(self.vq, on)

    def stop(self):
        """GET_VRING_BASE. -> the base"""
        base = abi.U32()
        self._l.fe_vq_stop(self.vq, C.byref(base))
        return base.value

    def leave(self, request=GET_VRING_BASE_SKIP_DRAIN, disable=True):
        """Stop without waiting for requests, disabled before as by QEMU. -> the base"""
        if disable:
            self.enable(False)
        m = abi.Msg()
        self._l.fe_call(C.cast(self.fe, abi.P), request,
                        _bytes(struct.pack("<II", self.index, 0)), 8, None, 0, C.byref(m))
        index, base = struct.unpack_from("<II", bytes(m.payload[:8]))
        if index != self.index:
            raise AssertionError("the base of queue %d was answered with that of %d"
                                 % (self.index, index))
        self.vq.contents.started = False
        self.vq.contents.base = base
        return base

    def reset(self):
        self._l.fe_vq_reset(self.vq)

    def swap_call(self):
        self._l.fe_vq_swap_call(self.vq)

    def swap_kick(self):
        self._l.fe_vq_swap_kick(self.vq)

    def ask_call(self):
        """Before sleeping on call_fd. True: there are completions already."""
        return self._l.fe_ask_call(self.vq)

    # -- raw packed ring: descriptors as (addr, len, id, flags) --

    def avail_bits(self, wrap=None):
        """The flags of a descriptor available in this lap."""
        return self._l.fe_vq_avail_bits(self.avail_wrap if wrap is None else wrap)

    def set_packed(self, pos, addr, length, ident, flags):
        self._l.fe_vq_set_packed(self.vq, pos, addr, length, ident, flags)

    def get_packed(self, pos):
        d = abi.PackedDesc()
        self._l.fe_vq_get_packed(self.vq, pos, C.byref(d))
        return d.addr, d.len, d.id, d.flags

    def set_driver_event(self, off_wrap, flags):
        self._l.fe_vq_set_driver_event(self.vq, off_wrap, flags)

    @property
    def device_event(self):
        """-> (off_wrap, flags)"""
        event = self._l.fe_vq_device_event(self.vq)
        return event & 0xffff, event >> 16

    # -- raw split ring --

    def set_desc(self, slot, addr, length, flags=0, next=0):
        self._l.fe_vq_set_desc(self.vq, slot, addr, length, flags, next)

    def set_avail(self, pos, head):
        self._l.fe_vq_set_avail(self.vq, pos, head)

    def set_avail_idx(self, idx):
        self._l.fe_vq_set_avail_idx(self.vq, idx & 0xffff)

    def set_avail_flags(self, flags):
        self._l.fe_vq_set_avail_flags(self.vq, flags)

    def set_used_event(self, idx):
        self._l.fe_vq_set_used_event(self.vq, idx & 0xffff)

    def push_head(self, head, status_gpa=NO_GPA, how=0):
        """Make descriptor `head` available, whatever it says, and kick."""
        return self._l.fe_vq_push_head(self.vq, head, status_gpa, how)

    @property
    def avail_event(self):
        return self._l.fe_vq_avail_event(self.vq)

    @property
    def used_flags(self):
        return self._l.fe_vq_used_flags(self.vq)

    @property
    def used_idx(self):
        return self._l.fe_vq_used_idx(self.vq)

    def used_elem(self, pos):
        """-> (id, len)"""
        head, length = abi.U32(), abi.U32()
        self._l.fe_vq_used_elem(self.vq, pos, C.byref(head), C.byref(length))
        return head.value, length.value


class Frontend:
    """A front end with its guest memory; see fe_opts in frontend.h for the options.

    Frontend(**opts) makes memory and rings only; Frontend.connect(path, **opts) connects and
    starts too (no_start=True: connects only). Flags are the names in FLAGS, =True."""

    def __init__(self, style="qemu", queues=1, queue_size=128, timeout=5.0, config_size=57,
                 seg_size=0, features_off=0, features_force=0, protocol_off=0,
                 mem_size=64 << 20, backing="memfd", dir=None, ring_region=-1, data_region=-1,
                 regions=(), **flags):
        self._p, self.q = None, []
        self._l = lib()
        unknown = set(flags) - set(FLAGS)
        if unknown:
            raise TypeError("unknown option: %s" % ", ".join(sorted(unknown)))
        specs = (abi.RegionSpec * max(1, len(regions)))(*regions)
        o = abi.Opts(STYLES[style], sum(FLAGS[k] for k, v in flags.items() if v), queues,
                  queue_size, _ms(timeout), config_size, seg_size, features_off, features_force,
                  protocol_off, mem_size, BACKINGS[backing], ring_region, data_region,
                  len(regions), dir.encode() if dir else None,
                  C.cast(specs, C.c_void_p) if regions else None)
        err = C.c_int()
        self._p = self._l.fe_create(C.byref(o), C.byref(err))
        if not self._p:
            self._p = None
            abi.check(err.value)
        self.q = [Queue(C.pointer(self.c.vqs[i])) for i in range(self.c.num_vqs)]

    @classmethod
    def connect(cls, path, **opts):
        fe = cls(**opts)
        try:
            fe.open(path)
            if not opts.get("no_start"):
                fe.start()
        except BaseException:
            fe.destroy()
            raise
        return fe

    @property
    def c(self):
        """The C struct fe: offered, features, protocol, max_queues, config_changes, ..."""
        if self._p is None:
            raise ValueError("front end destroyed")
        return self._p.contents

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.destroy()

    def __del__(self):
        self.destroy()

    def destroy(self):
        if self._p is not None:
            self._l.fe_destroy(self._p)
            self._p = None
            for q in self.q:
                q._vq = None

    # -- life --

    def open(self, path):
        self._l.fe_open(self._p, path.encode())

    def adopt(self, sock):
        """Take over a connected socket (a socket object or an fd)."""
        fd = os.dup(sock if isinstance(sock, int) else sock.fileno())
        os.set_blocking(fd, False)
        self._l.fe_adopt(self._p, fd)

    def start(self):
        self._l.fe_start(self._p)

    def negotiate(self):
        self._l.fe_start_negotiate(self._p)

    def start_rings(self):
        self._l.fe_start_rings(self._p)

    def stop(self):
        self._l.fe_stop(self._p)

    def reconnect(self):
        self._l.fe_reconnect(self._p)

    def close(self):
        """The socket only, as if the VM were killed; memory and rings stay."""
        self._l.fe_close(self._p)

    def fileno(self):
        return self.c.sock

    def has_feature(self, bit):
        return bool(self.c.features >> bit & 1)

    def has_protocol(self, bit):
        return bool(self.c.protocol >> bit & 1)

    @property
    def capacity(self):
        """In sectors, from the config read last."""
        return int.from_bytes(bytes(self.c.config[:8]), "little")

    @property
    def config(self):
        return bytes(self.c.config[:self.c.config_len])

    # -- requests on queue q --

    def request(self, rtype, sector=0, out=b"", in_len=0, q=0, how=0, timeout=5.0):
        return self.q[q].request(rtype, sector, out, in_len, how, timeout)

    def _ok(self, *args, **kw):
        status, data = self.request(*args, **kw)
        if status != S_OK:
            raise BlkError(status)
        return data

    def read(self, sector, length, q=0, timeout=5.0, how=0):
        return self._ok(T_IN, sector, in_len=length, q=q, timeout=timeout, how=how)

    def write(self, sector, data, q=0, timeout=5.0, how=0):
        self._ok(T_OUT, sector, out=data, q=q, timeout=timeout, how=how)

    def flush(self, q=0, timeout=5.0):
        self._ok(T_FLUSH, q=q, timeout=timeout)

    def get_id(self, q=0, timeout=5.0):
        return self._ok(T_GET_ID, in_len=20, q=q, timeout=timeout).split(b"\0")[0].decode()

    def discard(self, ranges, q=0, timeout=5.0):
        """ranges: [(sector, num_sectors[, flags])]"""
        self._ok(T_DISCARD, out=b"".join(pack_range(*r) for r in ranges), q=q, timeout=timeout)

    def write_zeroes(self, ranges, q=0, timeout=5.0):
        self._ok(T_WRITE_ZEROES, out=b"".join(pack_range(*r) for r in ranges), q=q,
                 timeout=timeout)

    # -- memory --

    def alloc(self, length, align=16, region=-1):
        gpa = self._l.fe_alloc(self._p, region, length, align)
        if gpa == NO_GPA:
            raise MemoryError("guest memory is full")
        return gpa

    def memory(self, gpa, length):
        """A writable view of a range that lies in one region."""
        at = self._l.fe_gpa(self._p, gpa, length)
        if not at:
            raise OSError(errno.EFAULT, "gpa 0x%x + 0x%x is not in one region" % (gpa, length))
        return memoryview((C.c_uint8 * length).from_address(at)).cast("B")

    def mem_write(self, gpa, data):
        self._l.fe_mem_write(self._p, gpa, _bytes(data), len(data))

    def mem_read(self, gpa, length):
        buf = C.create_string_buffer(length)
        self._l.fe_mem_read(self._p, gpa, buf, length)
        return buf.raw

    def write_desc(self, gpa, addr, length, flags=0, next=0):
        """A descriptor anywhere in guest memory: indirect tables."""
        self._l.fe_write_desc(self._p, gpa, addr, length, flags, next)

    def uva(self, gpa):
        return self._l.fe_gpa_to_uva(self._p, gpa)

    def add_region(self, spec, tell=True):
        """-> its number; tell: send ADD_MEM_REG too"""
        n = self._l.fe_mem_add(self._p, C.byref(spec))
        if tell:
            self._l.fe_add_mem_reg(self._p, n)
        return n

    def remove_region(self, number, tell=True, with_fd=False):
        if tell:
            self._l.fe_rem_mem_reg(self._p, number, with_fd)
        self._l.fe_mem_del(self._p, number)

    def region_fd(self, number):
        return self.c.regions[number].fd

    def mem_mark(self, number=0):
        return self._l.fe_mem_mark(self._p, number)

    def mem_release(self, mark, number=0):
        self._l.fe_mem_release(self._p, number, mark)

    # -- messages: raw --

    def send_bytes(self, data, fds=()):
        """Exactly these bytes: half messages, garbage."""
        self._l.fe_send_bytes(self._p, _bytes(data), len(data), _fds(fds), len(fds))

    def send_raw(self, request, payload=b"", flags=VERSION, size=None, fds=()):
        """A message whose header may lie about the size; no answer is waited for."""
        self._l.fe_send_raw(self._p, request, flags, len(payload) if size is None else size,
                            _bytes(payload), len(payload), _fds(fds), len(fds))

    @staticmethod
    def _message(m):
        return Message(m.request, m.flags, m.size, bytes(m.payload[:m.size]),
                       list(m.fds[:m.num_fds]))

    def recv(self, timeout=5.0):
        """The next message on the socket; its fds are the caller's."""
        m = abi.Msg()
        self._l.fe_recv_msg(self._p, C.byref(m), _ms(timeout))
        return self._message(m)

    def backend_recv(self, timeout=5.0):
        """The next message of the back end's channel (acknowledged if it asked)."""
        m = abi.Msg()
        self._l.fe_backend_recv(self._p, C.byref(m), _ms(timeout))
        return self._message(m)

    def closed(self, timeout=2.0):
        """True once the target has closed the connection."""
        return self._l.fe_closed(self._p, _ms(timeout)) == 1

    def quiet(self, seconds=0.05):
        """True when nothing arrives meanwhile: no second answer."""
        return self._l.fe_quiet(self._p, _ms(seconds)) == 1

    def wait_config_change(self, count=1, timeout=5.0):
        self._l.fe_wait_config_change(self._p, count, _ms(timeout))

    def send(self, request, payload=b"", fds=()):
        """A well-formed message, acknowledged if the style asks for it."""
        self._l.fe_send(self._p, request, _bytes(payload), len(payload), _fds(fds), len(fds))

    def call(self, request, payload=b"", fds=()):
        """A message with an answer of its own. -> Message"""
        m = abi.Msg()
        self._l.fe_call(self._p, request, _bytes(payload), len(payload), _fds(fds), len(fds),
                        C.byref(m))
        return self._message(m)

    # -- messages: by name --

    def get_u64(self, request):
        value = abi.U64()
        self._l.fe_get_u64(self._p, request, C.byref(value))
        return value.value

    def set_u64(self, request, value):
        self._l.fe_set_u64(self._p, request, value)

    def get_features(self):
        return self.get_u64(GET_FEATURES)

    def set_features(self, value):
        self.set_u64(SET_FEATURES, value)

    def get_protocol_features(self):
        return self.get_u64(GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, value):
        self._l.fe_set_protocol_features(self._p, value)

    def get_queue_num(self):
        return self.get_u64(GET_QUEUE_NUM)

    def get_max_mem_slots(self):
        return self.get_u64(GET_MAX_MEM_SLOTS)

    def get_status(self):
        return self.get_u64(GET_STATUS)

    def set_status(self, value):
        self.set_u64(SET_STATUS, value)

    def set_owner(self):
        self._l.fe_set_owner(self._p)

    def reset_owner(self):
        self._l.fe_reset_owner(self._p)

    def reset_device(self):
        self._l.fe_reset_device(self._p)

    def get_config(self, offset=0, size=57):
        buf = C.create_string_buffer(max(1, size))
        self._l.fe_get_config(self._p, offset, size, buf)
        return buf.raw[:size]

    def set_config(self, offset, data, flags=0):
        self._l.fe_set_config(self._p, offset, len(data), flags, _bytes(data))

    def set_mem_table(self):
        self._l.fe_set_mem_table(self._p)

    def add_mem_reg(self, number):
        self._l.fe_add_mem_reg(self._p, number)

    def rem_mem_reg(self, number, with_fd=False):
        self._l.fe_rem_mem_reg(self._p, number, with_fd)

    def set_vring_num(self, index, num):
        self._l.fe_set_vring_num(self._p, index, num)

    def set_vring_base(self, index, base):
        self._l.fe_set_vring_base(self._p, index, base)

    def get_vring_base(self, index):
        base = abi.U32()
        self._l.fe_get_vring_base(self._p, index, C.byref(base))
        return base.value

    def set_vring_addr(self, index, desc, used, avail, flags=0, log=0):
        """Addresses as the target sees them: fe.uva(gpa)."""
        self._l.fe_set_vring_addr(self._p, index, flags, desc, used, avail, log)

    def set_vring_enable(self, index, on):
        self._l.fe_set_vring_enable(self._p, index, int(on))

    def set_vring_fd(self, request, index, fd=-1):
        """KICK, CALL or ERR; fd -1 sends bit 8 and no fd."""
        self._l.fe_set_vring_fd(self._p, request, index, fd)

    def set_backend_req_fd(self):
        self._l.fe_set_backend_req_fd(self._p)

    def set_log_base(self, size, offset, fd):
        self._l.fe_set_log_base(self._p, size, offset, fd)

    def set_log_fd(self, fd):
        self._l.fe_set_log_fd(self._p, fd)

    def log_start(self):
        """As QEMU begins a migration: log memory, SET_LOG_BASE, LOG_ALL, the rings' log flag."""
        self._l.fe_log_start(self._p)

    def log_stop(self):
        self._l.fe_log_stop(self._p)

    def log_create(self, size=0):
        self._l.fe_log_create(self._p, size)

    def log_send_base(self):
        self._l.fe_log_send_base(self._p)

    def log_set(self, on, rings=True):
        self._l.fe_log_set(self._p, on, rings)

    def log_take(self):
        """The numbers of the dirty pages, which are clean afterwards."""
        buf = C.create_string_buffer(self.c.log_size)
        self._l.fe_log_take(self._p, buf)
        # Nearly all of it is zero: let the search skip that.
        return {8 * m.start() + bit for m in re.finditer(b"[^\0]", buf.raw)
                for bit in range(8) if m[0][0] >> bit & 1}

    def get_inflight_fd(self, queues, size):
        """-> (mmap_size, mmap_offset, fd)"""
        length, offset, fd = abi.U64(), abi.U64(), abi.I()
        self._l.fe_get_inflight_fd(self._p, queues, size, C.byref(length), C.byref(offset),
                                   C.byref(fd))
        return length.value, offset.value, fd.value

    def set_inflight_fd(self, mmap_size, mmap_offset, queues, size, fd):
        self._l.fe_set_inflight_fd(self._p, mmap_size, mmap_offset, queues, size, fd)
