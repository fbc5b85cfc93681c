#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the hand-made part of the fuzzing corpora: seed-* in corpus/<name>.

Each seed is something a well-behaved or a classic ill-behaved client does; the
fuzzers take it from there.
"""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
NEXT, WRITE, INDIRECT = 1, 2, 4


def desc(addr, length, flags=0, nxt=0):
    return struct.pack("<QIHH", addr, length, flags, nxt)


def avail(heads, size, flags=0, event=0):
    ring = heads + [0] * (size - len(heads))
    return struct.pack("<%dH" % (3 + size), flags, len(heads), *ring, event)


# ------- fuzz_vring -------

def vring_input(log2, flags, descs, moves=(1, 1, 1, 1), base=0, heads=(), tail=b"", rest=b""):
    size = 1 << log2
    head = struct.pack("<BBH", log2, flags, base) + bytes(moves).ljust(8, b"\0")
    table = b"".join(descs).ljust(16 * size, b"\0")
    ring = list(heads) or list(range(size))
    memory = table + avail((ring + [0] * size)[:size], size) + tail
    return head + memory.ljust(2048, b"\0") + rest


def vring_seeds():
    mem, second, third, askew = 0x1000, 0x1800, 0x1900, 0x8004
    table = desc(mem + 900, 8, NEXT, 1) + desc(mem + 950, 4, WRITE)
    yield "chain", vring_input(2, 7, [desc(mem + 900, 16, NEXT, 1),
                                      desc(mem + 1000, 512, NEXT | WRITE, 2),
                                      desc(mem + 1600, 1, WRITE)])
    yield "cross", vring_input(2, 7, [desc(mem + 2000, 400, NEXT, 1),
                                      desc(second + 250, 300, WRITE)])
    yield "indirect", vring_input(2, 7, [desc(second, 32, INDIRECT)], rest=table)
    yield "indirect-askew", vring_input(2, 7, [desc(askew + 4, 32, INDIRECT)],
                                        rest=b"\0" * (256 + 512 + 4) + table)
    yield "indirect-cross", vring_input(2, 7, [desc(third - 16, 32, INDIRECT)],
                                        rest=b"\0" * 240 + table)
    yield "long", vring_input(0, 6, [desc(mem + 100, 16 * 100, INDIRECT)],
                              tail=b"\0" * 40 + b"".join(desc(mem + i, 1, NEXT, i + 1)
                                                          for i in range(100)))
    yield "loop", vring_input(1, 3, [desc(mem, 1, NEXT, 1), desc(mem, 1, NEXT, 0)])
    yield "jump", vring_input(3, 3, [desc(mem, 1)], moves=(200,))
    yield "wrap", vring_input(3, 1, [desc(mem + i, 1) for i in range(8)],
                              moves=(8,) * 8, base=65530)
    yield "head", vring_input(1, 2, [desc(mem, 1)], heads=(0, 9))
    yield "top", vring_input(0, 2, [desc(2**64 - 257, 256, WRITE)])
    yield "used-moved", vring_input(1, 8, [desc(mem, 1)])[:12] + struct.pack("<H", 1) + b"\0" * 64


# ------- fuzz_protocol -------

def message(request, payload=b"", fds=0, kind=0, control=0):
    return struct.pack("<BBB", request, fds | kind << 3 | control, len(payload)) + payload


def u64(value):
    return struct.pack("<Q", value)


def state(index, num):
    return struct.pack("<II", index, num)


def region(gpa=0, size=0x10000, uva=0x10000, offset=0):
    return struct.pack("<QQQQ", gpa, size, uva, offset)


def vring(index, desc_uva=0x10000):
    return struct.pack("<IIQQQQ", index, 0, desc_uva, desc_uva + 0x800, desc_uva + 0x400, 0)


ACK = 0x20
FEATURES = 1 << 30 | 1 << 32 | 1 << 28 | 1 << 9
PROTOCOL = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 15 | 1 << 16


def negotiate(ack=0, features=FEATURES):
    return (message(1) + message(15) + message(16, u64(PROTOCOL)) + message(3, control=ack) +
            message(2, u64(features), control=ack))


def start_ring(index, ack=0, enable=True):
    out = (message(8, state(index, 8), control=ack) + message(10, state(index, 0), control=ack) +
           message(9, vring(index), control=ack) + message(12, u64(index), 1, 0, ack) +
           message(13, u64(index), 1, 0, ack) + message(14, u64(index), 1, 0, ack))
    return out + (message(18, state(index, 1), control=ack) if enable else b"")


def protocol_seeds():
    table = struct.pack("<II", 1, 0) + region()
    slot = u64(0) + region()
    yield "negotiate", negotiate() + message(17) + message(36)
    yield "config", negotiate() + message(24, struct.pack("<III", 0, 60, 0) + b"\0" * 60) + \
        message(25, struct.pack("<III", 32, 1, 0) + b"\1", control=ACK)
    yield "run", negotiate() + message(5, table, 1, 1) + start_ring(0) + message(11, state(0, 0))
    yield "run-two", negotiate(ACK) + message(37, slot, 1, 1, ACK) + start_ring(0, ACK) + \
        start_ring(1, ACK) + message(18, state(0, 0), control=ACK) + message(11, state(1, 0))
    yield "legacy", message(2, u64(1 << 9)) + message(5, table, 1, 1) + \
        start_ring(0, enable=False) + message(11, state(0, 0))
    yield "leave", negotiate() + message(5, table, 1, 1) + start_ring(0)
    yield "memory-while-running", negotiate() + message(5, table, 1, 1) + start_ring(0) + \
        message(5, table, 1, 1) + message(37, u64(0) + region(0x20000, 0x4000, 0x50000), 1, 1) + \
        message(38, u64(0) + region(0x20000, 0x4000, 0x50000)) + message(38, slot)
    yield "call-swapped", negotiate() + message(5, table, 1, 1) + start_ring(0) + \
        message(13, u64(0), 1, 0, ACK) + message(12, u64(0x100)) + message(14, u64(0), 1, 3)
    yield "backend-channel", negotiate() + message(21, b"", 1, 2) + \
        message(5, table, 1, 1) + start_ring(0)
    yield "status", negotiate() + message(39, u64(15)) + message(40) + message(34, control=ACK) + \
        message(39, u64(0), control=ACK)
    yield "no-memory", negotiate() + start_ring(0) + message(11, state(0, 0))
    yield "rings-outside", negotiate() + message(5, table, 1, 1) + message(9, vring(0, 0x90000)) + \
        start_ring(1) + message(12, u64(0), 1, 0)
    yield "overlap", negotiate() + \
        message(5, struct.pack("<II", 2, 0) + region() + region(0x1000), 2, 1)
    yield "too-many-fds", negotiate() + message(1, b"", 7, 0)
    yield "version", message(1, control=0x40)
    yield "reply", message(1, b"\0", control=0x40)
    yield "short", message(2, b"\0\0\0\0")
    yield "torn", message(0x80, struct.pack("<III", 1, 1, 0)[:7]) + message(0x80, b"\0" * 5)
    yield "inflight", negotiate() + message(31, b"\0" * 24)
    yield "queue-255", negotiate() + message(8, state(255, 8)) + message(8, state(256, 8))
    yield "config-far", negotiate() + \
        message(24, struct.pack("<III", 0xfffffff0, 32, 0) + b"\0" * 32)


# ------- fuzz_blk -------

GPA = 0x10000
DATA = GPA + 0x400


def blk_input(flags, descs, heads, data=()):
    memory = bytearray(0x2000)
    table = b"".join(descs)
    memory[0:len(table)] = table
    ring = avail(heads, 16)
    memory[0x100:0x100 + len(ring)] = ring
    for offset, content in data:
        memory[offset:offset + len(content)] = content
    return bytes([flags]) + bytes(memory).rstrip(b"\0")


def header(kind, sector=0):
    return struct.pack("<IIQ", kind, 0, sector)


def blk_seeds():
    head, status = GPA + 0x300, GPA + 0x380
    three = [desc(head, 16, NEXT, 1), desc(DATA, 512, NEXT | WRITE, 2), desc(status, 1, WRITE)]
    yield "read", blk_input(0, three, [0], [(0x300, header(0, 1))])
    write = [desc(head, 16, NEXT, 1), desc(DATA, 512, NEXT, 2), desc(status, 1, WRITE)]
    yield "write", blk_input(0, write, [0], [(0x300, header(1, 2)), (0x400, b"data")])
    yield "write-through", blk_input(0, write, [0], [(0x300, header(1, 255))])
    two = [desc(head, 16, NEXT, 1), desc(status, 1, WRITE)]
    yield "flush", blk_input(0, two, [0], [(0x300, header(4))])
    getid = [desc(head, 16, NEXT, 1), desc(DATA, 21, WRITE)]
    yield "getid", blk_input(0, getid, [0], [(0x300, header(8))])
    ranges = struct.pack("<QIIQII", 1, 8, 0, 20, 8, 0)
    discard = [desc(head, 16, NEXT, 1), desc(DATA, 32, NEXT, 2), desc(status, 1, WRITE)]
    yield "discard", blk_input(4, discard, [0], [(0x300, header(11)), (0x400, ranges)])
    yield "zeroes", blk_input(12, discard, [0], [(0x300, header(13)), (0x400, ranges)])
    yield "many", blk_input(1, three + [desc(head + 16, 16, NEXT, 4),
                                        desc(DATA + 600, 1024, NEXT, 2)],
                            [0, 3], [(0x300, header(0, 1) + header(1, 3))])
    inner = [desc(head, 7, NEXT, 1), desc(head + 7, 9, NEXT, 2)] + \
        [desc(DATA + 64 * i, 64, NEXT | WRITE, i + 3) for i in range(16)] + [desc(status, 1, WRITE)]
    yield "indirect", blk_input(2, [desc(GPA + 0x1000, len(inner) * 16, INDIRECT)], [0],
                                [(0x300, header(0, 1)), (0x1000, b"".join(inner))])
    joined = [desc(head, 17, NEXT, 1), desc(DATA, 512, WRITE)]
    yield "no-data", blk_input(0, joined, [0], [(0x300, header(0, 1))])
    yield "short-header", blk_input(0, [desc(head, 15, NEXT, 2)] + three[1:], [0])
    yield "no-status", blk_input(0, [desc(head, 16)], [0])
    yield "unknown", blk_input(0, two, [0], [(0x300, header(99))])
    yield "far", blk_input(0, three, [0], [(0x300, header(0, 2**55))])
    yield "edge", blk_input(0, [desc(GPA + 0x2000 - 16, 16, NEXT, 1),
                                desc(GPA, 512, NEXT | WRITE, 2),
                                desc(GPA + 0x1fff, 1, WRITE)], [0])
    yield "over-edge", blk_input(0, [desc(GPA + 0x2000 - 15, 16, NEXT, 1)] + three[1:], [0])
    yield "rings-as-data", blk_input(3, [desc(GPA, 16, NEXT, 1), desc(GPA, 0x1000, NEXT | WRITE, 2),
                                         desc(GPA + 0x182, 1, WRITE)], [0, 0, 0])


# ------- fuzz_rpc -------

def call(method, params=None, ident=1):
    text = '{"jsonrpc":"2.0","id":%s,"method":"%s"' % (ident, method)
    return (text + (',"params":%s}' % params if params else "}")).encode()


def rpc_seeds():
    null = call("bdev_null_create", '{"name":"n","num_blocks":2048,"block_size":512}')
    disk = call("vhost_create_blk_controller", '{"ctrlr":"v","dev_name":"n","cpumask":"[0]"}')
    yield "methods", call("rpc_get_methods") + call("spdk_get_version")
    yield "null", null + call("bdev_get_bdevs") + \
        call("bdev_null_resize", '{"name":"n","new_size":2}') + \
        call("bdev_get_iostat") + call("bdev_null_delete", '{"name":"n"}')
    yield "malloc", call("bdev_malloc_create", '{"name":"m","num_blocks":64,"block_size":4096,'
                         '"uuid":"01234567-89ab-cdef-0123-456789abcdef"}') + \
        call("bdev_get_bdevs", '{"name":"m"}') + \
        call("bdev_reset_iostat", '{"name":"m","mode":"maxmin"}')
    yield "fault", null + call("bdev_error_create", '{"base_name":"n"}') + \
        call("bdev_error_inject_error", '{"name":"EE_n","io_type":"read",'
             '"error_type":"failure","num":3}') + \
        call("bdev_delay_create", '{"base_bdev_name":"EE_n","name":"d","avg_read_latency":1,'
             '"p99_read_latency":2,"avg_write_latency":3,"p99_write_latency":4}') + \
        call("bdev_delay_update_latency", '{"delay_bdev_name":"d",'
             '"latency_type":"avg_read","latency_us":9}')
    yield "vhost", null + disk + call("vhost_get_controllers") + \
        call("vhost_controller_set_coalescing", '{"ctrlr":"v",'
             '"delay_base_us":3,"iops_threshold":100}') + \
        call("vhost_delete_controller", '{"ctrlr":"v"}')
    yield "notify", null + call("notify_get_types") + \
        call("notify_get_notifications", '{"id":0,"max":1}') + call("notify_get_notifications")
    yield "config", null + disk + call("framework_get_config", '{"name":"bdev"}') + \
        call("framework_get_config", '{"name":"vhost_blk"}') + call("framework_get_subsystems")
    yield "reactors", call("framework_get_reactors") + \
        call("thread_get_stats") + call("log_get_flags")
    yield "batch", b"[" + null + b"," + call("nothing", ident='"x"') + b",1,[]]"
    yield "torn", null[:20] + b"\xff" + null[20:50] + b"\xff" + null[50:]
    yield "notification", b'{"jsonrpc":"2.0","method":"bdev_get_bdevs"}'
    yield "cut", null[:-5]
    yield "deep", b"[" * 70
    yield "types", call("bdev_null_create", '{"name":7,"num_blocks":"x","block_size":-1}') + \
        call("bdev_null_create", '{"name":"n","num_blocks":1e3,"block_size":512.0,"x":null}')
    yield "strings", call("bdev_get_bdevs", r'{"name":"\u0000\ud800\udc00\ud800\"\\\n"}')
    yield "numbers", call("bdev_null_create", '{"name":"n",'
                          '"num_blocks":18446744073709551616,"block_size":512}')
    yield "wait", call("bdev_get_bdevs", '{"name":"none","timeout":100000}')
    yield "not-json", b"GET / HTTP/1.1\r\n\r\n"
    yield "bad-utf8", call("x").replace(b"x", b"\xc3\x28")
    yield "empty-batch", b"[]"
    yield "ids", b"".join(call("spdk_get_version", ident=i) for i in
                          ("null", "-1", "1.5", '"a"', "[]", "{}"))
    yield "duplicate", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"spdk_get_version","method":"x"}'


def main():
    for name, seeds in (("vring", vring_seeds), ("protocol", protocol_seeds), ("blk", blk_seeds),
                        ("rpc", rpc_seeds)):
        where = os.path.join(HERE, "corpus", name)
        os.makedirs(where, exist_ok=True)
        for label, content in seeds():
            with open(os.path.join(where, "seed-" + label), "wb") as out:
                out.write(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
