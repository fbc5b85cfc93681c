# SPDX-License-Identifier: BSD-3-Clause
"""A VM that moves to another target with requests in flight, as QEMU's migration does it.

    fe = case.connect(a.path('c0'), skip_drain=True)
    source = migrate.leave(fe)          # rings stopped, requests left; the source's connection
    migrate.go(fe, b.path('c0'))        # its memory copied, the rings started at the other
    source.close()

The Frontend stays the same object: what the driver knows goes along. Its memory and its in-flight
region become copies, so what the source does afterwards can reach neither."""
import ctypes as C
import mmap
import os
import socket

LIBC = C.CDLL(None, use_errno=True)
LIBC.mmap.restype = C.c_void_p
LIBC.mmap.argtypes = [C.c_void_p, C.c_size_t, C.c_int, C.c_int, C.c_int, C.c_long]
MAP_FIXED = 0x10


def copy_file(fd):
    """A new memfd with the same contents."""
    size = os.fstat(fd).st_size
    new = os.memfd_create('migrated')
    os.ftruncate(new, size)
    for at in range(0, size, 1 << 20):
        piece = os.pread(fd, 1 << 20, at)
        if piece.strip(b'\0'):
            os.pwrite(new, piece, at)
    return new


def copy_memory(fe):
    """Guest memory and in-flight region in files of their own; their addresses stay."""
    for i in range(fe.c.num_regions):
        r = fe.c.regions[i]
        new = copy_file(r.fd)
        at = LIBC.mmap(r.map, r.map_len, mmap.PROT_READ | mmap.PROT_WRITE,
                       mmap.MAP_SHARED | MAP_FIXED, new, 0)
        if at != r.map:
            raise OSError(C.get_errno(), 'cannot map the copy')
        os.dup2(new, r.fd, inheritable=False)
        os.close(new)
    if fe.c.inflight_fd >= 0:
        new = copy_file(fe.c.inflight_fd)
        os.dup2(new, fe.c.inflight_fd, inheritable=False)
        os.close(new)


def leave(fe):
    """All rings stop at once; -> the connection, which stays open until that is closed."""
    for q in fe.q:
        q.leave()
    return socket.socket(fileno=os.dup(fe.fileno()))


def go(fe, path):
    copy_memory(fe)
    fe.close()
    fe.open(path)
    fe.start()
