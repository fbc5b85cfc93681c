# SPDX-License-Identifier: BSD-3-Clause
"""The C front end's structures and functions for ctypes, as test/frontend/frontend.h has them; the
sizes are compared when the library is loaded. frontend.py is what tests use."""
import ctypes as C
import os

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MAX_FDS = 253


class Opts(C.Structure):
    _fields_ = [
        ("style", C.c_uint32), ("flags", C.c_uint32), ("num_queues", C.c_uint16),
        ("queue_size", C.c_uint16), ("timeout_ms", C.c_uint32), ("config_size", C.c_uint32),
        ("seg_size", C.c_uint32), ("features_off", C.c_uint64), ("features_force", C.c_uint64),
        ("protocol_off", C.c_uint64), ("mem_size", C.c_uint64), ("backing", C.c_int32),
        ("ring_region", C.c_int32), ("data_region", C.c_int32), ("num_regions", C.c_uint32),
        ("dir", C.c_char_p), ("regions", C.c_void_p)]


class RegionSpec(C.Structure):
    _fields_ = [
        ("gpa", C.c_uint64), ("size", C.c_uint64), ("mmap_offset", C.c_uint64),
        ("uva", C.c_uint64), ("dir", C.c_char_p), ("backing", C.c_int32), ("share", C.c_int32)]


class Region(C.Structure):
    _fields_ = [
        ("gpa", C.c_uint64), ("size", C.c_uint64), ("mmap_offset", C.c_uint64),
        ("uva", C.c_uint64), ("host", C.c_void_p), ("map", C.c_void_p), ("map_len", C.c_size_t),
        ("next", C.c_uint64), ("fd", C.c_int), ("gone", C.c_bool)]


class Seg(C.Structure):
    _fields_ = [("gpa", C.c_uint64), ("len", C.c_uint32), ("flags", C.c_uint32)]


class Completion(C.Structure):
    _fields_ = [("head", C.c_uint32), ("len", C.c_uint32), ("cookie", C.c_uint64),
                ("status", C.c_int32), ("pad", C.c_uint32)]


class Vq(C.Structure):
    _fields_ = [
        ("fe", C.c_void_p), ("index", C.c_uint16), ("size", C.c_uint16),
        ("avail_idx", C.c_uint16), ("kicked_idx", C.c_uint16), ("last_used", C.c_uint16),
        ("free_head", C.c_uint16), ("num_free", C.c_uint16), ("in_flight", C.c_uint16),
        ("base", C.c_uint32), ("event_idx", C.c_bool), ("indirect", C.c_bool),
        ("started", C.c_bool), ("enabled", C.c_bool), ("log", C.c_bool), ("packed", C.c_bool),
        ("avail_wrap", C.c_bool), ("used_wrap", C.c_bool), ("held", C.c_bool),
        ("held_at", C.c_uint16), ("held_flags", C.c_uint16), ("added", C.c_uint16),
        ("desc", C.c_void_p),
        ("avail", C.c_void_p), ("used", C.c_void_p), ("desc_gpa", C.c_uint64),
        ("avail_gpa", C.c_uint64), ("used_gpa", C.c_uint64), ("scratch_gpa", C.c_uint64),
        ("scratch", C.c_void_p), ("next_free", C.c_void_p), ("slots", C.c_void_p),
        ("kick_fd", C.c_int), ("call_fd", C.c_int), ("err_fd", C.c_int), ("kicks", C.c_uint64),
        ("calls", C.c_uint64), ("bounce_gpa", C.c_uint64), ("bounce_len", C.c_uint64)]


class PackedDesc(C.Structure):
    _fields_ = [("addr", C.c_uint64), ("len", C.c_uint32), ("id", C.c_uint16),
                ("flags", C.c_uint16)]


class Msg(C.Structure):
    _fields_ = [
        ("request", C.c_uint32), ("flags", C.c_uint32), ("size", C.c_uint32),
        ("num_fds", C.c_uint32), ("fds", C.c_int * MAX_FDS), ("payload", C.c_uint8 * 4096)]


class Fe(C.Structure):
    _fields_ = [
        ("opts", Opts), ("sock", C.c_int), ("backend_sock", C.c_int), ("offered", C.c_uint64),
        ("features", C.c_uint64), ("offered_protocol", C.c_uint64), ("protocol", C.c_uint64),
        ("max_queues", C.c_uint64), ("max_mem_slots", C.c_uint64),
        ("config_changes", C.c_uint64), ("backend_messages", C.c_uint64),
        ("regions", C.POINTER(Region)), ("num_regions", C.c_uint32), ("memory_sent", C.c_bool),
        ("vqs", C.POINTER(Vq)), ("num_vqs", C.c_uint16), ("config_len", C.c_uint32),
        ("config", C.c_uint8 * 256), ("inflight_fd", C.c_int), ("inflight_size", C.c_uint64),
        ("inflight_offset", C.c_uint64), ("log_fd", C.c_int), ("log_size", C.c_uint64),
        ("log", C.c_void_p), ("path", C.c_char * 108)]


def library_path():
    """Where libfrontend.so is: the unsanitized one, whatever the target was built with."""
    build = os.path.join(REPO, os.environ.get("BUILD", "build")).rstrip("/")
    if set(os.path.basename(build).split("-")) & {"address", "undefined", "thread"}:
        build = os.path.dirname(build)
    for d in (build, os.path.join(REPO, "build")):
        path = os.path.join(d, "test", "libfrontend.so")
        if os.path.exists(path):
            return path
    return os.path.join(build, "test", "libfrontend.so")


P, V = C.POINTER(Fe), C.POINTER(Vq)
U16, U32, U64, I, PTR = C.c_uint16, C.c_uint32, C.c_uint64, C.c_int, C.c_void_p
_SIGNATURES = {
    # name: (result, arguments); a result of int is checked for -errno
    "fe_sizeof": (C.c_size_t, [U32]),
    "fe_opts_init": (None, [C.POINTER(Opts)]),
    "fe_create": (P, [C.POINTER(Opts), C.POINTER(I)]),
    "fe_open": (I, [P, C.c_char_p]),
    "fe_adopt": (None, [P, I]),
    "fe_start": (I, [P]), "fe_start_negotiate": (I, [P]), "fe_start_rings": (I, [P]),
    "fe_stop": (I, [P]), "fe_reconnect": (I, [P]),
    "fe_close": (None, [P]), "fe_destroy": (None, [P]),
    "fe_send_bytes": (I, [P, PTR, C.c_size_t, PTR, U32]),
    "fe_send_raw": (I, [P, U32, U32, U32, PTR, C.c_size_t, PTR, U32]),
    "fe_send": (I, [P, U32, PTR, U32, PTR, U32]),
    "fe_call": (I, [P, U32, PTR, U32, PTR, U32, C.POINTER(Msg)]),
    "fe_recv_msg": (I, [P, C.POINTER(Msg), I]),
    "fe_backend_recv": (I, [P, C.POINTER(Msg), I]),
    "fe_closed": (I, [P, I]), "fe_quiet": (I, [P, I]),
    "fe_wait_config_change": (I, [P, U64, I]),
    "fe_get_u64": (I, [P, U32, C.POINTER(U64)]), "fe_set_u64": (I, [P, U32, U64]),
    "fe_set_protocol_features": (I, [P, U64]),
    "fe_set_owner": (I, [P]), "fe_reset_owner": (I, [P]), "fe_reset_device": (I, [P]),
    "fe_get_config": (I, [P, U32, U32, PTR]),
    "fe_set_config": (I, [P, U32, U32, U32, PTR]),
    "fe_set_mem_table": (I, [P]), "fe_add_mem_reg": (I, [P, U32]),
    "fe_rem_mem_reg": (I, [P, U32, C.c_bool]),
    "fe_set_vring_num": (I, [P, U32, U32]), "fe_set_vring_base": (I, [P, U32, U32]),
    "fe_get_vring_base": (I, [P, U32, C.POINTER(U32)]),
    "fe_set_vring_addr": (I, [P, U32, U32, U64, U64, U64, U64]),
    "fe_set_vring_enable": (I, [P, U32, U32]),
    "fe_set_vring_fd": (I, [P, U32, U32, I]),
    "fe_set_backend_req_fd": (I, [P]),
    "fe_set_log_base": (I, [P, U64, U64, I]), "fe_set_log_fd": (I, [P, I]),
    "fe_get_inflight_fd": (I, [P, U16, U16, C.POINTER(U64), C.POINTER(U64),
                                C.POINTER(I)]),
    "fe_set_inflight_fd": (I, [P, U64, U64, U16, U16, I]),
    "fe_mem_add": (I, [P, C.POINTER(RegionSpec)]), "fe_mem_del": (None, [P, U32]),
    "fe_gpa": (PTR, [P, U64, U64]), "fe_gpa_to_uva": (U64, [P, U64]),
    "fe_mem_write": (I, [P, U64, PTR, U64]), "fe_mem_read": (I, [P, U64, PTR, U64]),
    "fe_alloc": (U64, [P, I, U64, U64]),
    "fe_mem_mark": (U64, [P, U32]), "fe_mem_release": (None, [P, U32, U64]),
    "fe_vq_reset": (None, [V]), "fe_vq_use_packed": (None, [V, C.c_bool]),
    "fe_vq_start": (I, [V, U32, C.c_bool]),
    "fe_vq_send_addr": (I, [V]), "fe_ask_call": (C.c_bool, [V]),
    "fe_vq_set_packed": (None, [V, U32, U64, U32, U16, U16]),
    "fe_vq_get_packed": (None, [V, U32, C.POINTER(PackedDesc)]),
    "fe_vq_avail_bits": (U16, [C.c_bool]),
    "fe_vq_set_driver_event": (None, [V, U16, U16]), "fe_vq_device_event": (U32, [V]),
    "fe_log_start": (I, [P]), "fe_log_stop": (I, [P]), "fe_log_create": (I, [P, U64]),
    "fe_log_send_base": (I, [P]), "fe_log_set": (I, [P, C.c_bool, C.c_bool]),
    "fe_log_take": (None, [P, PTR]),
    "fe_vq_enable": (I, [V, C.c_bool]), "fe_vq_stop": (I, [V, C.POINTER(U32)]),
    "fe_vq_swap_call": (I, [V]), "fe_vq_swap_kick": (I, [V]),
    "fe_submit_chain": (I, [V, C.POINTER(Seg), U32, U64, U64, U32, U64]),
    "fe_submit": (I, [V, U32, U64, C.POINTER(Seg), U32, U32, U64]),
    "fe_publish": (None, [V]), "fe_kick": (I, [V, C.c_bool]),
    "fe_poll": (I, [V, C.POINTER(Completion), U32]),
    "fe_wait": (I, [V, C.POINTER(Completion), U32, I]),
    "fe_vq_error": (I, [V, I]), "fe_vq_call_pending": (I, [V, I]),
    "fe_vq_set_desc": (None, [V, U32, U64, U32, U16, U16]),
    "fe_vq_set_avail": (None, [V, U32, U16]), "fe_vq_set_avail_idx": (None, [V, U16]),
    "fe_vq_set_avail_flags": (None, [V, U16]), "fe_vq_set_used_event": (None, [V, U16]),
    "fe_vq_avail_event": (U16, [V]), "fe_vq_used_flags": (U16, [V]),
    "fe_vq_used_idx": (U16, [V]),
    "fe_vq_used_elem": (None, [V, U32, C.POINTER(U32), C.POINTER(U32)]),
    "fe_vq_push_head": (I, [V, U16, U64, U32]),
    "fe_write_desc": (I, [P, U64, U64, U32, U16, U16]),
    "fe_request": (I, [V, U32, U64, PTR, U32, PTR, U32, U32, I]),
}


def check(rc):
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


class Library:
    """The loaded functions; integer results are checked, so -errno raises OSError."""

    def __init__(self, path):
        dll = C.CDLL(path)
        for name, (result, args) in _SIGNATURES.items():
            fn = getattr(dll, name)
            fn.restype, fn.argtypes = result, args
            setattr(self, name, self._checked(fn) if result is I else fn)
        for which, mirror in enumerate((Opts, RegionSpec, Region, Vq, Msg, Fe)):
            if self.fe_sizeof(which) != C.sizeof(mirror):
                raise RuntimeError("%s: feabi.py and frontend.h disagree about %s"
                                   % (path, mirror.__name__))

    @staticmethod
    def _checked(fn):
        return lambda *args: check(fn(*args))


_loaded = None


def lib():
    """The library, loaded at first use so that importing this module never fails."""
    global _loaded
    if _loaded is None:
        _loaded = Library(library_path())
    return _loaded
