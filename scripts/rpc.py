#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Command line client of the target's JSON-RPC socket.

The commands are rows of the table COMMANDS: a method, its help, its arguments, how its result is
printed. An argument is named as the parameter it becomes; what is not given is not sent, so that
the target's own defaults hold. Commands that need more than one call (save_config and the like)
are functions at the end of the table.
"""
import argparse
import difflib
import ipaddress
import json
import os
import shlex
import socket
import sys
import time

DEFAULT_SOCKET = '/var/tmp/spdk.sock'
MIB = 1 << 20


class ClientError(Exception):
    """No answer: the target cannot be reached, or it is silent, or it closed the connection."""


class RpcError(Exception):
    """An answer with an error object."""

    def __init__(self, method, params, error):
        super().__init__(f'{method} failed')
        self.method = method
        self.params = params
        self.error = error

    def __str__(self):
        return ('Got JSON-RPC error response\nresponse:\n'
                + json.dumps(self.error, indent=2, ensure_ascii=False))


class UsageError(Exception):
    """Arguments that argparse finds right but that make no sense."""


class Client:
    """One connection, opened with the first call."""

    def __init__(self, address, port, timeout, retries=0, verbose='ERROR'):
        self.address = address
        self.port = port
        self.timeout = timeout
        self.retries = retries
        self.verbose = verbose
        self.sock = None
        self.buffer = b''
        self.last_id = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        if self.sock:
            self.sock.close()
        self.sock = None
        self.buffer = b''

    def _open(self):
        try:
            version = ipaddress.ip_address(self.address).version
        except ValueError:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            where = self.address
        else:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            sock = socket.socket(family, socket.SOCK_STREAM)
            where = (self.address, self.port)
        try:
            sock.settimeout(self.timeout)
            sock.connect(where)
        except OSError:
            sock.close()
            raise
        self.sock = sock

    def connect(self):
        for left in range(self.retries, -1, -1):
            try:
                self._open()
                return
            except (OSError, ValueError) as e:
                if not left:
                    raise ClientError(f'Error while connecting to {self.address}\n'
                                      'Is the target running, with this RPC socket (its -r)?\n'
                                      f'Error details: {e}') from None
                time.sleep(0.2)

    def _receive(self):
        """Bytes up to the newline that ends every answer; a wall-clock limit for the whole."""
        end = time.monotonic() + self.timeout
        searched = 0
        while True:
            at = self.buffer.find(b'\n', searched)
            if at >= 0:
                line, self.buffer = self.buffer[:at], self.buffer[at + 1:]
                if line.strip():
                    return line
                searched = 0
                continue
            searched = len(self.buffer)
            left = end - time.monotonic()
            try:
                if left <= 0:
                    raise socket.timeout
                self.sock.settimeout(left)
                data = self.sock.recv(1 << 16)
            except socket.timeout:
                raise ClientError(f'Timeout while waiting for response ({self.timeout:g} s)') \
                    from None
            except OSError as e:
                raise ClientError(f'Connection broke: {e}') from None
            if not data:
                # A peer that does not end answers with a newline may end them with the stream.
                line, self.buffer = self.buffer, b''
                if line.strip():
                    return line
                raise EOFError
            self.buffer += data

    def _log(self, level, title, text):
        if self.verbose == 'DEBUG' or self.verbose == level:
            print(f'{title}:\n{text}\n', file=sys.stderr)

    def call(self, method, params=None):
        if not self.sock:
            self.connect()
        self.last_id += 1
        request = {'jsonrpc': '2.0', 'method': method, 'id': self.last_id}
        if params:
            request['params'] = params
        self._log('INFO', 'request', json.dumps(request, indent=2))
        try:
            try:
                self.sock.sendall(json.dumps(request).encode())
            except OSError as e:
                raise ClientError(f'Connection broke: {e}') from None
            line = self._receive()
            try:
                reply = json.loads(line)
            except ValueError:
                raise ClientError(f'Answer is not JSON: {line[:200]!r}') from None
        except EOFError:
            self.close()
            if method == 'spdk_kill_instance':
                return True
            raise ClientError('Connection closed with no response') from None
        except ClientError:
            self.close()
            raise
        self._log('INFO', 'response', json.dumps(reply, indent=2))
        if not isinstance(reply, dict) or not ('result' in reply or 'error' in reply):
            raise ClientError(f'Answer is no JSON-RPC response: {line[:200]!r}')
        if 'error' in reply:
            raise RpcError(method, params, reply['error'])
        return reply['result']


class DryRun:
    """Stands in for Client: shows what would be sent."""

    def call(self, method, params=None):
        print('Request:\n' + json.dumps({'method': method, 'params': params or {}}, indent=2))

    def close(self):
        pass


# ---- the table ----

def pos(name, text, kind=str, **more):
    return (name,), dict(help=text, type=kind, **more)


def opt(names, text, kind=str, **more):
    return names.split(), dict(help=text, type=kind, default=None, **more)


def flag(names, text, **more):
    return names.split(), dict(help=text, action='store_true', default=None, **more)


def switch(name, text, old, **more):
    """--NAME and --no-NAME, besides the two older one-sided spellings."""
    return [(['--' + name], dict(help=text, action=argparse.BooleanOptionalAction,
                                 default=None, **more)),
            (old[0].split(), dict(help='same as --' + name, action='store_true', default=None,
                                  **more)),
            (old[1].split(), dict(help='same as --no-' + name, action='store_false', default=None,
                                  **more))]


def words(text):
    return text.split(',')


def numbers(text):
    return [int(w) for w in text.split(',')]


def pair(text):
    key, equals, value = text.partition('=')
    if not equals or not key:
        raise argparse.ArgumentTypeError(f'{text!r} is not key=value')
    return key, value


def blocks_of_size(params):
    """The operator speaks of MiB, the method of blocks."""
    size = params.pop('total_size')
    if params['block_size'] <= 0:
        raise UsageError(f'block_size {params["block_size"]} is not a size')
    if size <= 0:
        raise UsageError(f'total_size {size:g} MiB is not a size')
    return {'num_blocks': int(size * MIB) // params['block_size'], **params}


def pairs_to_object(key):
    def fix(params):
        if key in params:
            params[key] = dict(params[key])
        return params
    return fix


def rbd_image(params):
    """One name, as QEMU has it (rbd:pool/image@snap:id=me), in place of pool and image."""
    params = pairs_to_object('config')(params)
    if params['pool_name'].startswith('rbd:'):
        params['uri'] = params.pop('pool_name')
        if 'rbd_name' in params:
            try:
                params['block_size'] = int(params.pop('rbd_name'))
            except ValueError:
                raise UsageError('after an rbd: name comes only the block size')
    elif 'rbd_name' not in params or 'block_size' not in params:
        raise UsageError('pool, image and block size are needed, or one rbd: name')
    return params


def need_switch(key, text):
    def fix(params):
        if key not in params:
            raise UsageError(text)
        return params
    return fix


SILENT, PRINT = 'silent', 'print'
DEFAULTS = (None, None, SILENT, None)   # of the columns of COMMANDS
NAME = pos('name', 'name of the bdev')
UUID = opt('-u --uuid', 'UUID of the bdev (default: a random one)')
PHYSICAL = opt('-p --physical-block-size', 'physical block size in bytes (default: block_size)',
               int)
METADATA = [
    opt('-m --md-size', 'metadata per block in bytes (default 0: none)', int),
    opt('-t --dif-type', 'protection information type 0 to 3 (default 0: none)', int,
        choices=[0, 1, 2, 3]),
    flag('-d --dif-is-head-of-md', 'protection information stands first in the metadata'),
    opt('-f --dif-pi-format', 'protection information format 0 to 2, for 16, 32, 64 bit guards',
        int, choices=[0, 1, 2]),
]

# method: (help, arguments[, output[, fix-up of the parameters]])
COMMANDS = {
    'spdk_get_version': ('version of the target', [], PRINT),
    'spdk_kill_instance': ('send a signal to the target', [
        pos('sig_name', 'SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGKILL or SIGUSR1; the SIG may be '
            'left out')]),
    'rpc_get_methods': ('list the RPC methods', [
        flag('-c --current', 'only those that can be called in the current state'),
        flag('-i --include-aliases', 'also old names')], PRINT),

    'framework_start_init': ('leave the state that --wait-for-rpc starts in', []),
    'framework_wait_init': ('answer once the target is initialized', []),
    'framework_get_reactors': ('reactors: cores, busy and idle time (ticks), threads', [], PRINT),
    'framework_get_subsystems': ('subsystems in the order of their start', [], PRINT),
    'framework_get_config': ('calls that rebuild the configuration of one subsystem', [
        pos('name', 'subsystem, such as bdev or vhost_blk')], PRINT),
    'config_get_pending': ('what of a loaded configuration could not be made yet', [], PRINT),
    'framework_set_scheduler': ('choose the thread scheduler', [
        pos('name', 'scheduler, such as static'),
        opt('-p --period', 'period in microseconds', int),
        opt('--load-limit', 'load limit in percent', int),
        opt('--core-limit', 'core limit in percent', int),
        opt('--core-busy', 'core busy limit in percent', int),
        opt('--mappings', 'list of thread:core, separated by commas')]),
    'framework_get_scheduler': ('the thread scheduler and its settings', [], PRINT),
    'framework_get_governor': ('the CPU frequency governor', [], PRINT),
    'framework_monitor_context_switch': ('context switch monitor: show, or switch', switch(
        'monitor', 'watch context switches of the reactors, or not',
        ('-e --enable', '-d --disable'), dest='enabled'), PRINT),
    'framework_enable_cpumask_locks': ('take the lock files of the cores in use', []),
    'framework_disable_cpumask_locks': ('release the lock files of the cores in use', []),

    'thread_get_stats': ('busy and idle time (ticks) and pollers of each thread', [], PRINT),
    'thread_get_pollers': ('pollers of each thread', [], PRINT),
    'thread_get_io_channels': ('I/O channels of each thread', [], PRINT),
    'thread_set_cpumask': ('bind a thread to cores', [
        opt('-i --id', 'thread id', int, required=True),
        opt('-m --cpumask', 'cores as 0x3 or [0,1]', required=True)]),

    'log_set_flag': ('switch a debug log flag on', [pos('flag', 'log flag, or all')]),
    'log_clear_flag': ('switch a debug log flag off', [pos('flag', 'log flag, or all')]),
    'log_get_flags': ('the debug log flags', [], PRINT),
    'log_set_level': ('set the level of the log', [
        pos('level', 'DISABLED, ERROR, WARNING, NOTICE, INFO or DEBUG')]),
    'log_get_level': ('the level of the log', [], PRINT),
    'log_set_print_level': ('set the level of what is printed to stderr', [
        pos('level', 'DISABLED, ERROR, WARNING, NOTICE, INFO or DEBUG')]),
    'log_get_print_level': ('the level of what is printed to stderr', [], PRINT),
    'log_enable_timestamps': ('time stamps in the log, or not', switch(
        'timestamps', 'print the time before each line, or not', ('-e --enable', '-d --disable'),
        dest='enabled'), SILENT, need_switch('enabled', 'give --timestamps or --no-timestamps')),

    'bdev_set_options': ('options of the block layer (for compatibility)', [
        opt('-p --bdev-io-pool-size', 'number of bdev_io structures', int),
        opt('-c --bdev-io-cache-size', 'bdev_io structures cached per thread', int),
        *switch('auto-examine', 'examine new bdevs, or not',
                ('-e --enable-auto-examine', '-d --disable-auto-examine'),
                dest='bdev_auto_examine'),
        opt('--iobuf-small-cache-size', 'small buffers cached per thread', int),
        opt('--iobuf-large-cache-size', 'large buffers cached per thread', int)]),
    'bdev_examine': ('examine a bdev', [opt('-b --name', 'name of the bdev', required=True)]),
    'bdev_wait_for_examine': ('answer once all bdevs have been examined', []),
    'bdev_get_bdevs': ('the bdevs: size, features, backend', [
        opt('-b --name', 'only this bdev'),
        opt('-t --timeout-ms', 'with -b: milliseconds to wait until it appears (default 0)', int,
            dest='timeout', metavar='MS')], PRINT),
    'bdev_get_iostat': ('I/O counters: bytes, operations, latencies (ticks)', [
        opt('-b --name', 'only this bdev'),
        opt('--names', 'only these bdevs, separated by commas', words),
        flag('-c --per-channel', 'per channel; needs one bdev'),
        opt('--reset-mode', 'what to set to zero after reading (default none)',
            choices=['all', 'maxmin', 'error', 'none'])], PRINT),
    'bdev_reset_iostat': ('set I/O counters to zero', [
        opt('-b --name', 'only this bdev'),
        opt('-m --mode', 'which counters (default all)',
            choices=['all', 'maxmin', 'error', 'none'])]),
    'bdev_enable_histogram': ('latency histogram of a bdev: on or off', [
        NAME,
        *switch('histogram', 'collect it, or not', ('-e --enable', '-d --disable'),
                dest='enable'),
        opt('-o --opc', 'only for this I/O type, such as read'),
        opt('--granularity', 'buckets per power of two, as a power of two (default 7)', int),
        opt('--min-nsec', 'lowest latency that is told apart, in nanoseconds', int),
        opt('--max-nsec', 'highest latency that is told apart, in nanoseconds', int)],
        SILENT, need_switch('enable', 'give --histogram or --no-histogram')),
    'bdev_get_histogram': ('latency histogram of a bdev, base64 of little-endian u64', [NAME],
                           PRINT),
    'bdev_get_histogram_borders': ('latency counts of a bdev below given borders', [
        NAME, opt('--borders', 'ascending, in microseconds, separated by commas', numbers,
                  required=True)], PRINT),
    'bdev_set_qos_limit': ('limit the rate of a bdev; 0 lifts a limit', [
        NAME,
        opt('--rw-ios-per-sec', 'reads and writes per second', int),
        opt('--rw-mbytes-per-sec', 'MiB read and written per second', int),
        opt('--r-mbytes-per-sec', 'MiB read per second', int),
        opt('--w-mbytes-per-sec', 'MiB written per second', int)]),
    'bdev_set_qd_sampling_period': ('sample the queue depth of a bdev', [
        NAME, pos('period', 'microseconds between samples, 0 for none', int)]),

    'bdev_malloc_create': ('a disk in memory (huge pages)', [
        pos('total_size', 'size in MiB, may be a fraction', float),
        pos('block_size', 'logical block size in bytes', int),
        opt('-b --name', 'name of the bdev (default MallocN)'), UUID, PHYSICAL,
        opt('-o --optimal-io-boundary', 'boundary in blocks that I/O should not cross', int),
        flag('-i --md-interleave', 'metadata stands behind each block'), *METADATA,
        opt('-n --numa-id', 'NUMA node of the memory (default -1: any)', int)],
        PRINT, blocks_of_size),
    'bdev_malloc_delete': ('delete a malloc bdev', [NAME]),
    'bdev_null_create': ('a disk that drops writes and reads as it pleases', [
        NAME, pos('total_size', 'size in MiB', int),
        pos('block_size', 'logical block size in bytes', int), UUID, PHYSICAL, *METADATA,
        opt('-a --preferred-write-alignment', 'in blocks', int),
        opt('-g --preferred-write-granularity', 'in blocks', int),
        opt('-s --optimal-write-size', 'in blocks', int),
        opt('-c --preferred-unmap-alignment', 'in blocks', int),
        opt('-r --preferred-unmap-granularity', 'in blocks', int)], PRINT, blocks_of_size),
    'bdev_null_delete': ('delete a null bdev', [NAME]),
    'bdev_null_resize': ('resize a null bdev', [NAME, pos('new_size', 'in MiB', int)], PRINT),
    'bdev_aio_create': ('a file or block device as a disk', [
        pos('filename', 'file or block device'), NAME,
        pos('block_size', 'logical block size in bytes (default: what the file has)', int,
            nargs='?'),
        flag('-r --readonly', 'open read-only'),
        flag('--fallocate', 'discard and write zeroes by fallocate'), UUID,
        flag('--no-wait', 'ask for non-blocking submission', dest='nowait'),
        flag('--lock-in-use', 'hold the image locks only while guests use it')], PRINT),
    'bdev_aio_rescan': ('look for a new size of the file', [NAME], PRINT),
    'bdev_aio_delete': ('delete an aio bdev; the file stays', [NAME]),
    'bdev_uring_create': ('a file or block device as a disk, by io_uring', [
        pos('filename', 'file or block device'), NAME,
        pos('block_size', 'logical block size in bytes (default: what the file has)', int,
            nargs='?'), UUID,
        flag('--lock-in-use', 'hold the image locks only while guests use it')], PRINT),
    'bdev_uring_rescan': ('look for a new size of the file', [NAME], PRINT),
    'bdev_uring_delete': ('delete a uring bdev; the file stays', [NAME]),

    'bdev_rbd_register_cluster': ('connect to a Ceph cluster', [
        pos('name', 'name for this connection'),
        opt('--user', 'Ceph user (admin, not client.admin)', dest='user_id'),
        opt('--config-param', 'option for librados; may be repeated', pair, action='append',
            metavar='KEY=VALUE'),
        opt('--config-file', 'ceph.conf to read'),
        opt('--key-file', 'keyring to read'),
        opt('--core-mask', 'cores of the Ceph client\'s threads, as 0x3 or [0,1]')],
        PRINT, pairs_to_object('config_param')),
    'bdev_rbd_unregister_cluster': ('close the connection to a Ceph cluster', [
        pos('name', 'name of the connection')]),
    'bdev_rbd_get_clusters_info': ('connections to Ceph clusters', [
        opt('-b --name', 'only this connection')], PRINT),
    'bdev_rbd_create': ('an RBD image as a disk', [
        pos('pool_name', 'pool, or the image by its QEMU name (rbd:pool/image...)'),
        pos('rbd_name', 'image', nargs='?'),
        pos('block_size', 'logical block size in bytes (512)', int, nargs='?'),
        opt('-b --name', 'name of the bdev (default CephN)'),
        opt('--user', 'Ceph user (admin, not client.admin)', dest='user_id'),
        opt('--config', 'option for librados; may be repeated', pair, action='append',
            metavar='KEY=VALUE'),
        opt('-c --cluster-name', 'connection made by bdev_rbd_register_cluster'), UUID,
        flag('-r --readonly', 'open read-only', dest='read_only'),
        opt('--namespace', 'namespace of the pool'),
        opt('--snapshot', 'snapshot of the image; read-only'),
        opt('--cache', 'default, none, writeback or writethrough'),
        flag('--exclusive', 'hold the exclusive lock; refuse if another client has it'),
        opt('--config-file', 'ceph.conf to read'),
        opt('--key-file', 'keyring to read'),
        opt('--timeout', 'seconds for connecting and opening (30)', int),
        opt('--io-timeout', 'fail requests after so many seconds (never)', int)],
        PRINT, rbd_image),
    'bdev_rbd_delete': ('delete an RBD bdev; the image stays', [NAME]),
    'bdev_rbd_resize': ('grow an RBD image', [
        NAME, pos('new_size', 'in MiB', int),
        flag('--allow-shrink', 'allow to make it smaller')], PRINT),

    'bdev_error_create': ('wrap a bdev to inject errors; its name is EE_ and the base\'s', [
        pos('base_name', 'bdev to wrap'), opt('--uuid', 'UUID of the bdev')], PRINT),
    'bdev_error_delete': ('delete an error bdev', [NAME]),
    'bdev_error_inject_error': ('let I/O of an error bdev go wrong', [
        NAME,
        pos('io_type', 'clear (no more errors), read, write, unmap, flush or all'),
        pos('error_type', 'failure, pending (never completes), corrupt_data or nomem'),
        opt('-n --num', 'number of requests that go wrong (default 1)', int),
        opt('-q --queue-depth', 'only with that many in flight', int),
        opt('-o --corrupt-offset', 'corrupt_data: offset in bytes', int),
        opt('-v --corrupt-value', 'corrupt_data: value to xor with, 1 to 255', int)]),
    'bdev_delay_create': ('wrap a bdev to delay its I/O', [
        opt('-b --base-bdev-name', 'bdev to wrap', required=True),
        opt('-d --name', 'name of the delay bdev', required=True), UUID,
        opt('-r --avg-read-latency', 'delay of reads in microseconds', int, required=True),
        opt('-t --nine-nine-read-latency', 'delay of 1 in 100 reads in microseconds', int,
            required=True, dest='p99_read_latency'),
        opt('-w --avg-write-latency', 'delay of writes in microseconds', int, required=True),
        opt('-n --nine-nine-write-latency', 'delay of 1 in 100 writes in microseconds', int,
            required=True, dest='p99_write_latency')], PRINT),
    'bdev_delay_update_latency': ('change one delay of a delay bdev', [
        pos('delay_bdev_name', 'name of the delay bdev'),
        pos('latency_type', 'avg_read, avg_write, p99_read or p99_write'),
        pos('latency_us', 'in microseconds', int)], PRINT),
    'bdev_delay_delete': ('delete a delay bdev', [NAME]),

    'vhost_create_blk_controller': ('offer a bdev to a VM on a vhost-user socket', [
        pos('ctrlr', 'name of the controller and of its socket'),
        pos('dev_name', 'bdev behind it'),
        opt('--cpumask', 'cores that serve it, as 0x3 or [0,1]; within the target\'s own mask '
            '(default: all of them)'),
        opt('--transport', 'virtio-blk transport (default vhost_user_blk)'),
        flag('-r --readonly', 'the VM may not write'),
        flag('-p --packed_ring', 'offer packed virtqueues')]),
    'vhost_get_controllers': ('controllers, their sockets and sessions', [
        opt('-n --name', 'only this controller')], PRINT),
    'vhost_controller_attach_bdev': ('give a controller without a bdev another one', [
        pos('ctrlr', 'name of the controller'), pos('dev_name', 'name of the bdev')]),
    'vhost_delete_controller': ('delete a controller', [
        pos('ctrlr', 'name of the controller'),
        flag('--only-unused', 'not while a front end is connected')]),
    'vhost_controller_set_coalescing': ('fewer interrupts to the VM at a high rate', [
        pos('ctrlr', 'name of the controller'),
        pos('delay_base_us', 'delay in microseconds, 0 for none', int),
        pos('iops_threshold', 'I/O per second above which it works, at least 100', int)]),
    'virtio_blk_create_transport': ('create a virtio-blk transport', [
        pos('name', 'name of the transport')]),
    'virtio_blk_get_transports': ('virtio-blk transports', [
        opt('--name', 'only this transport')], PRINT),

    'notify_get_types': ('types of events that are recorded', [], PRINT),
    'notify_get_notifications': ('recorded events', [
        opt('-i --id', 'first event to return', int),
        opt('-n --max', 'at most that many', int)], PRINT),
}


# ---- commands made of several calls ----

def print_result(result):
    if isinstance(result, str):
        print(result)
    else:
        print(json.dumps(result, indent=2, ensure_ascii=False))


def dump(value, indent):
    print(json.dumps(value, indent=indent if indent >= 0 else None, ensure_ascii=False))


def read_json(source):
    """From stdin, from a file, or the text itself, as the operator likes."""
    try:
        if source is None:
            return json.load(sys.stdin)
        if os.path.exists(source):
            with open(source, encoding='utf-8') as f:
                return json.load(f)
        if source.lstrip()[:1] not in ('{', '['):
            raise UsageError(f'{source}: no such file')
        return json.loads(source)
    except ValueError as e:
        raise UsageError(f'configuration is not JSON: {e}') from None
    except OSError as e:
        raise UsageError(f'{source}: {e.strerror}') from None


def save_config(client, args):
    subsystems = client.call('framework_get_subsystems') or []
    needs = {}
    for row in subsystems:
        needs[row['subsystem']] = {row['subsystem']}.union(
            *(needs.get(d, {d}) for d in row['depends_on']))
    wanted = set(needs)
    if args.subsystems:
        unknown = [s for s in args.subsystems if s not in needs]
        if unknown:
            raise UsageError(f'unknown subsystem {", ".join(unknown)}')
        wanted = set().union(*(needs[s] for s in args.subsystems))
    dump({'subsystems': [
        {'subsystem': name, 'config': client.call('framework_get_config', {'name': name})}
        for name in needs if name in wanted]}, args.indent)


def save_subsystem_config(client, args):
    dump({'subsystem': args.name,
          'config': client.call('framework_get_config', {'name': args.name})}, args.indent)


def methods(client, args, current):
    params = {}
    if current:
        params['current'] = True
    if args.include_aliases:
        params['include_aliases'] = True
    return set(client.call('rpc_get_methods', params))


def load(client, args, subsystems):
    """Makes the calls of a configuration, in order, those first that the current state allows."""
    pending = []
    for row in subsystems:
        if not isinstance(row, dict):
            raise UsageError('a subsystem in the configuration is not an object')
        pending += row.get('config') or []
    known = methods(client, args, False)
    for entry in pending:
        method = entry.get('method') if isinstance(entry, dict) else None
        if method not in known:
            raise UsageError(f'Unknown method was included in the config file: {method}')
    while True:
        allowed = methods(client, args, True)
        now = [e for e in pending if e['method'] in allowed]
        for entry in now:
            client.call(entry['method'], entry.get('params'))
        pending = [e for e in pending if e['method'] not in allowed]
        if 'framework_start_init' in allowed:
            client.call('framework_start_init')
        elif not now or not pending:
            break
    if pending:
        print('Some configs were skipped because the RPC state that can call them passed over: '
              + ', '.join(sorted({e['method'] for e in pending})))


def load_config(client, args):
    config = read_json(args.json_conf)
    if not isinstance(config, dict) or not isinstance(config.get('subsystems'), list):
        raise UsageError('configuration has no array "subsystems"')
    load(client, args, config['subsystems'])


def load_subsystem_config(client, args):
    config = read_json(args.json_conf)
    if not isinstance(config, dict) or 'config' not in config:
        raise UsageError('configuration has no "config"')
    load(client, args, [config])


INDENT = opt('-i --indent', 'spaces per level, less than 0 for one line (default 2)', int)
ALIASES = flag('-i --include-aliases', 'the configuration may use old names of methods')
JSON = opt('-j --json-conf', 'file with the configuration, or its text (default: stdin)')
PROGRAMS = {
    'save_config': (save_config, 'print the configuration, for load_config or the target\'s -c', [
        INDENT, opt('-s --subsystems', 'only these and what they need, separated by commas',
                    words)]),
    'load_config': (load_config, 'make the calls of a saved configuration', [ALIASES, JSON]),
    'save_subsystem_config': (save_subsystem_config, 'print the configuration of a subsystem', [
        INDENT, opt('-n --name', 'the subsystem', required=True)]),
    'load_subsystem_config': (load_subsystem_config, 'make the calls of a saved subsystem', [
        ALIASES, JSON]),
}


# ---- command line ----

class Parser(argparse.ArgumentParser):
    def _check_value(self, action, value):
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = difflib.get_close_matches(value, action.choices, 3, 0.6)
            hint = f'; did you mean {" or ".join(near)}?' if near else ''
            raise argparse.ArgumentError(
                None, f'unknown command {value}{hint} (--help lists them, --raw calls any method)')
        super()._check_value(action, value)


def add_arguments(parser, arguments):
    for names, settings in arguments:
        parser.add_argument(*names, **settings)


def make_parser():
    parser = Parser(
        prog='rpc.py', usage='%(prog)s [options] command [arguments]',
        description='Command line interface of the target. Without a command, reads one per line '
        'from standard input.')
    parser.add_argument('-s', '--server_addr', default=DEFAULT_SOCKET, metavar='ADDR',
                        help='RPC socket, or an IP address (default %(default)s)')
    parser.add_argument('-p', '--port', type=int, default=5260,
                        help='TCP port, if the address is an IP address (default %(default)s)')
    parser.add_argument('-t', '--timeout', dest='rpc_timeout', type=float, default=60.0,
                        metavar='SECONDS',
                        help='how long to wait for an answer (default %(default)s)')
    parser.add_argument('-r', dest='conn_retries', type=int, default=0, metavar='N',
                        help='try to connect N more times, every 0.2 s')
    parser.add_argument('-v', dest='verbose', action='store_const', const='INFO', default='ERROR',
                        help='show requests and responses on stderr')
    parser.add_argument('--verbose', dest='verbose', choices=['DEBUG', 'INFO', 'ERROR'],
                        help='how much to show on stderr')
    parser.add_argument('--dry-run', action='store_true', help='show the request, do not send it')
    parser.add_argument('--server', dest='is_server', action='store_true',
                        help='read commands from stdin until it ends, print **STATUS=0 or '
                        '**STATUS=1 after each')
    parser.add_argument('--raw', nargs='+', metavar=('METHOD', 'JSON'),
                        help='call any method, with parameters as a JSON object')
    commands = parser.add_subparsers(dest='command', metavar='command', title='commands',
                                     prog='rpc.py', parser_class=argparse.ArgumentParser)
    for name, row in COMMANDS.items():
        p = commands.add_parser(name, help=row[0], description=row[0])
        add_arguments(p, row[1])
    for name, (_, text, arguments) in PROGRAMS.items():
        p = commands.add_parser(name, help=text, description=text)
        add_arguments(p, arguments)
        p.set_defaults(indent=2)
    return parser


def dests(arguments):
    """The parameter names that a command's arguments fill, in the table's order."""
    for names, settings in arguments:
        long = next((n for n in names if n.startswith('--')), names[0])
        yield settings.get('dest') or long.lstrip('-').replace('-', '_')


def run_command(client, args):
    if args.command in PROGRAMS:
        if isinstance(client, DryRun):
            raise UsageError(f'{args.command} depends on answers: --dry-run cannot show it')
        PROGRAMS[args.command][0](client, args)
        return
    arguments, output, fix = (COMMANDS[args.command][1:] + DEFAULTS[len(COMMANDS[args.command]):])
    params = {}
    for key in dests(arguments):
        value = getattr(args, key)
        if value is not None:
            params[key] = value
    if fix:
        params = fix(params)
    result = client.call(args.command, params)
    if output is PRINT and not isinstance(client, DryRun):
        print_result(result)


def run_raw(client, words_given):
    if len(words_given) > 2:
        raise UsageError('--raw takes a method and one JSON object')
    params = None
    if len(words_given) == 2:
        try:
            params = json.loads(words_given[1])
        except ValueError as e:
            raise UsageError(f'parameters are not JSON: {e}') from None
    result = client.call(words_given[0], params)
    if not isinstance(client, DryRun):
        print_result(result)


def run_safely(client, args):
    """Exit status of one command; what went wrong goes to stderr."""
    try:
        if args.raw:
            run_raw(client, args.raw)
        else:
            run_command(client, args)
        return 0
    except RpcError as e:
        if e.method != args.command and not args.raw:
            print(f'{args.command}: {e.method} {json.dumps(e.params or {})} failed',
                  file=sys.stderr)
        print(e, file=sys.stderr)
    except ClientError as e:
        print(e, file=sys.stderr)
    except UsageError as e:
        print(f'rpc.py: {e}', file=sys.stderr)
    return 1


def run_lines(parser, client, server):
    """A command per line; '#' begins a comment. Without --server the first failure ends it."""
    for line in sys.stdin:
        try:
            line_words = shlex.split(line, comments=True)
        except ValueError as e:
            print(f'rpc.py: {e}: {line.rstrip()}', file=sys.stderr)
            line_words, status = None, 1
        if line_words:
            try:
                args = parser.parse_args(line_words)
                if args.command or args.raw:
                    status = run_safely(client, args)
                else:
                    print(f'rpc.py: no command: {line.rstrip()}', file=sys.stderr)
                    status = 1
            except SystemExit as e:
                status = 1 if e.code else 0
        elif line_words is not None:
            continue
        if server:
            # The target may be another one by the time of the next command.
            client.close()
            print(f'**STATUS={status}', flush=True)
        elif status:
            return status
    return 0


def main():
    parser = make_parser()
    args = parser.parse_args()
    if args.rpc_timeout <= 0:
        parser.error('the timeout must be above 0')
    if args.dry_run:
        client = DryRun()
    else:
        client = Client(args.server_addr, args.port, args.rpc_timeout, args.conn_retries,
                        args.verbose)
    try:
        if args.command or args.raw:
            return run_safely(client, args)
        if not args.is_server and sys.stdin.isatty():
            parser.print_help()
            return 1
        return run_lines(parser, client, args.is_server)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left; Python would complain again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        client.close()


if __name__ == '__main__':
    sys.exit(main())
