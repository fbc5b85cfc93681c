# SPDX-License-Identifier: BSD-3-Clause
"""Shared by the Python test suites: starting the target, talking to it, running tests.

    import spindle                      # with test/lib on sys.path

    class Basics(spindle.TestCase):
        def test_version(self):
            t = self.target('0x3', '--poll-us', '50')   # started; stopped when the test ends
            self.assertIn('version', t.rpc('spdk_get_version'))

    if __name__ == '__main__':
        spindle.run_tests()

Environment: BUILD is the directory that holds bin/vhost (default <repo>/build); POLL_US makes
targets that would poll for ever sleep after so many idle microseconds, for runs that share cores.
A target lives in a private directory under /tmp which goes away with it, and dies with the process
that started it. A sanitizer report in the log of any target fails the test during which it appeared.
"""
import argparse
import collections
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import unittest

REPO = pathlib.Path(__file__).resolve().parents[2]
POLL_US = os.environ.get('POLL_US')
BUILD = pathlib.Path(os.environ.get('BUILD') or REPO / 'build').resolve()
# SAN=address,undefined builds into build/address-undefined.
SANITIZER = (BUILD.name if set(BUILD.name.split('-')) <= {'address', 'undefined', 'thread'}
             else None)
# Instrumented code on a busy machine is several times slower; every time limit is scaled by this.
SLOW = 4 if SANITIZER else 1

SANITIZER_MARKS = ('ERROR: AddressSanitizer', 'ERROR: LeakSanitizer', 'runtime error:',
                   'WARNING: ThreadSanitizer')
SANITIZER_OPTIONS = {
    'ASAN_OPTIONS': 'detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1',
    'UBSAN_OPTIONS': 'print_stacktrace=1',
    'TSAN_OPTIONS': 'second_deadlock_stack=1:history_size=4:suppressions='
                    + str(REPO / 'test' / 'lib' / 'tsan.supp'),
}
LOG_TAIL_LINES = 60
PR_SET_PDEATHSIG = 1


class RpcError(Exception):
    """The target answered with an error object."""

    def __init__(self, error, method=''):
        self.code = error.get('code')
        self.message = error.get('message')
        self.data = error.get('data')
        super().__init__(f'{method}: {self.code} {self.message}'
                         + (f' ({self.data})' if self.data is not None else ''))


class TargetError(AssertionError):
    """The target did not start, died, or did not stop as it should."""


class TestTimeout(BaseException):
    """Raised in a test by the watchdog; not an Exception, so that tests do not swallow it."""


def wait_until(condition, timeout=10, what='condition', interval=0.02):
    """Polls until condition() is true and returns its value; AssertionError after timeout s."""
    end = time.monotonic() + timeout * SLOW
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f'{what}: not within {timeout * SLOW} s')
        time.sleep(interval)


def need_root():
    if os.geteuid() != 0:
        raise unittest.SkipTest('needs root')


def need_tool(name):
    """The full path of a program; skips the test where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path='/usr/sbin:/sbin')
    if not path:
        raise unittest.SkipTest(f'{name} is not installed')
    return path


def need_cores(count):
    have = len(os.sched_getaffinity(0))
    if have < count:
        raise unittest.SkipTest(f'needs {count} cores, has {have}')


def built(path):
    """A program made by the build, as built('test/frontend/feblk'); an error when not there."""
    full = BUILD / path
    if not full.exists():
        raise TargetError(f'{full} has not been built')
    return str(full)


def temp_dir():
    """A fresh private directory whose name leaves room in a unix socket address."""
    return tempfile.mkdtemp(prefix='sp.', dir='/tmp')


class RpcSocket:
    """One connection to an RPC socket: bytes out, JSON values in."""

    def __init__(self, path, timeout=None):
        self.timeout = (timeout or 30) * SLOW
        self.buffer = ''
        self.partial = b''
        self.next_id = 1
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.connect(path)
        except OSError:
            self.sock.close()
            raise

    def connect(self, path):
        # Many connect at once: a full backlog is no refusal.
        end = time.monotonic() + self.timeout
        while True:
            try:
                return self.sock.connect(path)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        """Sends bytes as they are; a str is encoded, anything else becomes JSON."""
        if isinstance(data, str):
            data = data.encode()
        elif not isinstance(data, (bytes, bytearray)):
            data = json.dumps(data).encode()
        self.sock.sendall(data)

    def _take(self):
        text = self.buffer.lstrip()
        if not text:
            return None
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return None
        self.buffer = text[end:]
        return (value,)

    def recv(self, timeout=None):
        """The next JSON value. EOFError when the target closed, TimeoutError when it is silent."""
        end = time.monotonic() + (timeout * SLOW if timeout is not None else self.timeout)
        while True:
            # A value is complete when its newline is there: no parse of a half-received one.
            if '\n' in self.buffer:
                found = self._take()
                if found:
                    return found[0]
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f'no answer; received so far: {self.buffer[:200]!r}')
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except socket.timeout:
                continue
            if not data:
                raise EOFError(f'connection closed; left over: {self.buffer[:200]!r}')
            self.partial += data
            # Only whole lines are decoded, so a split UTF-8 sequence cannot hurt.
            cut = self.partial.rfind(b'\n') + 1
            self.buffer += self.partial[:cut].decode()
            self.partial = self.partial[cut:]

    def silent(self, seconds=0.3):
        """True when nothing comes for that long (and the connection stays open)."""
        try:
            self.sock.settimeout(seconds)
            return not self.buffer.strip() and self._peek() is None
        finally:
            self.sock.settimeout(self.timeout)

    def _peek(self):
        try:
            return self.sock.recv(1, socket.MSG_PEEK)
        except socket.timeout:
            return None

    def closed(self, seconds=5):
        """True when the target closes the connection within that time, having sent no more."""
        self.sock.settimeout(seconds * SLOW)
        try:
            return self._peek() == b''
        except ConnectionResetError:
            return True
        finally:
            self.sock.settimeout(self.timeout)

    def call(self, method, params=None, timeout=None):
        request = {'jsonrpc': '2.0', 'id': self.next_id, 'method': method}
        self.next_id += 1
        if params:
            request['params'] = params
        self.send(request)
        reply = self.recv(timeout)
        if not isinstance(reply, dict) or reply.get('id') != request['id']:
            raise AssertionError(f'answer to something else: {reply!r}')
        if 'error' in reply:
            raise RpcError(reply['error'], method)
        return reply['result']


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Target:
    """A running build/bin/vhost.

    Target(mask, *args) only prepares; start() runs it, and so does `with Target(...) as t`.
    locks=False adds --disable-cpumask-locks, because suites share cores. directory=None makes a
    private one (removed by cleanup()); give one to start a second target in the same place.
    """

    live = []
    findings = []       # sanitizer reports of targets that are already gone

    def __init__(self, mask='0x1', *args, locks=False, directory=None, env=None, sock=None,
                 prefix=()):
        self.mask = mask
        self.prefix = list(prefix)
        self.args = [str(a) for a in args]
        self.locks = locks
        self.own_dir = directory is None
        self.dir = directory or temp_dir()
        self.sock = sock or os.path.join(self.dir, 'rpc.sock')
        self.env = env or {}
        self.proc = None
        self.client = None
        self.log_path = None
        self.scanned = 0
        self.starts = 0
        self.last_log = ''
        Target.live.append(self)

    def __enter__(self):
        return self if self.proc else self.start()

    def __exit__(self, kind, value, tb):
        try:
            if kind is None and self.running():
                self.stop()
        finally:
            self.cleanup()

    def path(self, name):
        """A file name in the target's directory: a controller's socket, an image."""
        return os.path.join(self.dir, name)

    def command(self):
        cmd = [str(BUILD / 'bin' / 'vhost'), '-S', self.dir, '-r', self.sock]
        if self.mask is not None:
            cmd += ['-m', str(self.mask)]
        if not self.locks:
            cmd.append('--disable-cpumask-locks')
        if POLL_US and not {'--poll-us', '--interrupt-mode'} & set(self.args):
            cmd += ['--poll-us', POLL_US]
        return cmd + self.args

    def spawn(self):
        """Runs the program without waiting for its RPC socket."""
        if self.running():
            raise TargetError('already running')
        if not os.access(self.command()[0], os.X_OK):
            raise TargetError(f'{self.command()[0]} has not been built')
        self.scan()
        self.starts += 1
        self.scanned = 0
        self.log_path = os.path.join(self.dir, f'vhost.{id(self):x}.{self.starts}.log')
        env = dict(os.environ)
        for key, value in SANITIZER_OPTIONS.items():
            env.setdefault(key, value)
        env.update(self.env)
        with open(self.log_path, 'wb') as log:
            self.proc = subprocess.Popen(self.prefix + self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, env=env, preexec_fn=_die_with_parent)
        return self

    def start(self, timeout=15):
        """Runs it and waits until RPC answers; TargetError with the log when it does not."""
        self.spawn()
        end = time.monotonic() + timeout * SLOW
        while True:
            if self.proc.poll() is not None:
                raise TargetError(f'exited with {self.proc.returncode} while starting:\n'
                                  + self.log_tail())
            try:
                self.client = RpcSocket(self.sock)
                self.client.call('rpc_get_methods', timeout=5)
                return self
            except (OSError, EOFError):
                if self.client:
                    self.client.close()
                    self.client = None
            if time.monotonic() > end:
                raise TargetError(f'no RPC answer within {timeout * SLOW} s:\n' + self.log_tail())
            time.sleep(0.02)

    def run_to_exit(self, timeout=15):
        """For starts that must be refused: runs it and returns its exit status."""
        self.spawn()
        return self.wait(timeout)

    @property
    def pid(self):
        return self.proc.pid

    def running(self):
        return self.proc is not None and self.proc.poll() is None

    def wait(self, timeout=10):
        try:
            return self.proc.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            raise TargetError(f'still running after {timeout * SLOW} s:\n'
                              + self.log_tail()) from None

    def send_signal(self, number):
        if self.running():
            self.proc.send_signal(number)

    def stop(self, number=signal.SIGTERM, timeout=10, code=0):
        """Ends it with a signal, asserts its exit status, returns how many seconds it took."""
        began = time.monotonic()
        if self.client:
            self.client.close()
            self.client = None
        self.send_signal(number)
        got = self.wait(timeout)
        if got != code:
            raise TargetError(f'exit status {got} instead of {code}:\n' + self.log_tail())
        return time.monotonic() - began

    def kill(self):
        """SIGKILL, as a crash would look from outside; a no-op when it is not running."""
        if self.client:
            self.client.close()
            self.client = None
        if self.running():
            self.proc.kill()
            self.proc.wait()

    def cleanup(self):
        """Kills what is left, remembers sanitizer reports, removes the private directory."""
        self.kill()
        self.scan()
        self.last_log = self.log()
        if self in Target.live:
            Target.live.remove(self)
        if self.own_dir:
            shutil.rmtree(self.dir, ignore_errors=True)

    def rpc(self, method, /, **params):
        """A call on a connection that stays open; RpcError when the answer is an error."""
        if not self.client:
            self.client = RpcSocket(self.sock)
        try:
            return self.client.call(method, params)
        except (OSError, EOFError, AssertionError):
            self.client.close()
            self.client = None
            raise

    def raw(self, timeout=None):
        """A connection of its own, for byte-level tests: an RpcSocket (a context manager)."""
        return RpcSocket(self.sock, timeout)

    def cli(self, *args, check=True, **kwargs):
        """Runs scripts/rpc.py against this target; a CompletedProcess with text output."""
        cmd = [sys.executable, str(REPO / 'scripts' / 'rpc.py'), '-s', self.sock]
        kwargs.setdefault('timeout', 30 * SLOW)
        return subprocess.run(cmd + [str(a) for a in args], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=check, **kwargs)

    def log(self):
        """All that this run wrote to stdout and stderr."""
        if not self.log_path or not os.path.exists(self.log_path):
            return self.last_log
        with open(self.log_path, 'rb') as f:
            return f.read().decode(errors='replace')

    def log_tail(self, lines=LOG_TAIL_LINES):
        return '\n'.join(self.log().splitlines()[-lines:])

    def wait_log(self, text, timeout=5):
        return wait_until(lambda: text in self.log(), timeout, f'log line with {text!r}')

    def scan(self):
        """Collects sanitizer reports that are new since the last scan."""
        text = self.log()
        new = text[self.scanned:]
        for mark in SANITIZER_MARKS:
            at = new.find(mark)
            if at >= 0:
                # Reports grow while they are written; what matters is where they begin.
                start = new.rfind('\n', 0, at) + 1
                Target.findings.append(new[start:start + 6000])
                break
        self.scanned = len(text)

    @classmethod
    def take_findings(cls):
        for target in cls.live:
            target.scan()
        found, cls.findings[:] = list(cls.findings), []
        return found


def status_of(target):
    """For a failure's message."""
    code = target.proc.poll()
    return f'process {target.pid}, ' + ('running' if code is None else f'left with {code}')


class TestCase(unittest.TestCase):
    """unittest.TestCase with targets that end with the test. `timeout`: watchdog, in seconds."""

    timeout = 60
    maxDiff = None

    def target(self, mask='0x1', *args, start=True, **kwargs):
        """A started Target; asserts after the test that it ends cleanly if it still runs."""
        t = Target(mask, *args, **kwargs)
        self.addCleanup(self._end_target, t)
        return t.start() if start else t

    def _end_target(self, t):
        try:
            if t.running():
                # A target that a test left stopped (SIGSTOP) could not exit.
                t.send_signal(signal.SIGCONT)
                t.stop()
        finally:
            if getattr(self, '_trouble', False):
                self._tails.append(t.log_tail())
            t.cleanup()

    def run(self, result=None):
        self._tails = []
        return super().run(result)

    def rpc_fails(self, target, code, method, text=None, /, **params):
        """Asserts that a call fails with that code, and with text in its message or data."""
        with self.assertRaises(RpcError) as caught:
            target.rpc(method, **params)
        error = caught.exception
        self.assertEqual(error.code, code, str(error))
        if text is not None:
            self.assertIn(text, f'{error.message} {error.data}')
        return error

    def temp_dir(self):
        path = temp_dir()
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path


def timeout(seconds):
    """Decorator: another watchdog time for one test."""
    def mark(function):
        function.timeout = seconds
        return function
    return mark


def _test_timeout(test):
    method = getattr(test, getattr(test, '_testMethodName', ''), None)
    return getattr(method, 'timeout', None) or getattr(test, 'timeout', 60)


def _alarm(number, frame):
    raise TestTimeout('the test took too long (watchdog)')


class _Result(unittest.TestResult):
    """Counts, times and prints; turns sanitizer reports into failures."""

    def __init__(self, per_class):
        super().__init__()
        self.per_class = per_class
        self.counts = collections.Counter()
        self.state = None
        self.began = 0

    @staticmethod
    def _name(test):
        return test.id().replace('__main__.', '')

    def startTest(self, test):
        super().startTest(test)
        self.state = 'passed'
        self.began = time.monotonic()
        limit = _test_timeout(test) * SLOW
        # It strikes again if what cleans up after the first one hangs as well.
        signal.setitimer(signal.ITIMER_REAL, limit, 15)

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        for report in Target.take_findings():
            self._report(test, 'sanitizer report in the target\'s log:\n' + report)
        took = time.monotonic() - self.began
        if self.state != 'skipped':
            word = 'ok  ' if self.state == 'passed' else 'FAIL'
            print(f'{word} {took:7.2f} s  {self._name(test)}', flush=True)
        self.counts[self.state] += 1
        super().stopTest(test)

    def _report(self, test, text):
        self.state = 'failed'
        test._trouble = True
        print(f'--- {self._name(test)}\n{text.rstrip()}', flush=True)
        for target in Target.live:
            print(f'--- end of the log of target {target.dir}\n{target.log_tail()}', flush=True)
        for tail in getattr(test, '_tails', []):
            print(f'--- end of the target\'s log\n{tail}', flush=True)

    def _failed(self, test, err):
        text = ''.join(traceback.format_exception(*err))
        if not isinstance(test, unittest.TestCase):
            # setUpClass, tearDownClass or setUpModule: no test of its own to count.
            self._report(test, text)
            self.counts['failed'] += self.per_class.get(self._class_of(test), 0) or 1 \
                if 'setUp' in test.id() else 1
            self.state = None
            return
        self._report(test, text)

    @staticmethod
    def _class_of(holder):
        return holder.id().partition('(')[2].rstrip(')')

    def addError(self, test, err):
        super().addError(test, err)
        self._failed(test, err)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._failed(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            print(f'--- in subtest {subtest._subDescription()}')
            self._failed(test, err)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f'skip: {self._name(test)}: {reason}', flush=True)
        if isinstance(test, unittest.TestCase):
            if self.state == 'passed':
                self.state = 'skipped'
        else:
            self.counts['skipped'] += self.per_class.get(self._class_of(test), 0) or 1

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._report(test, 'unexpected success')


def _flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _flatten(item)
        else:
            yield item


def _selected(test, names):
    full = test.id()
    return not names or any(n == full or n in full.split('.') or full.endswith('.' + n)
                            or n in full for n in names)


def run_tests(*modules, argv=None):
    """Runs the calling program's tests, or those of the named modules; exits with the status.

    The command line takes names or parts of names of the tests to run, and --list. The last line
    printed is `N passed, N failed, N skipped`; the status is 1 when something failed.
    """
    parser = argparse.ArgumentParser(description='run tests against build/bin/vhost')
    parser.add_argument('names', nargs='*', help='test, class, or part of a name; default all')
    parser.add_argument('-l', '--list', action='store_true', help='only print the names')
    args = parser.parse_args(argv)
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for module in modules or ('__main__',):
        if module == '__main__':
            suite.addTests(loader.loadTestsFromModule(sys.modules['__main__']))
        else:
            suite.addTests(loader.loadTestsFromName(module))
    tests = [t for t in _flatten(suite) if _selected(t, args.names)]
    if args.list:
        for test in tests:
            print(test.id())
        sys.exit(0)
    if args.names and not tests:
        print(f'no test is named {" or ".join(args.names)}')
        print('0 passed, 1 failed, 0 skipped')
        sys.exit(1)
    result = _Result(collections.Counter(unittest.util.strclass(type(t)) for t in tests))
    signal.signal(signal.SIGALRM, _alarm)
    try:
        unittest.TestSuite(tests).run(result)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for target in list(Target.live):
            target.cleanup()
    for report in Target.take_findings():
        # From a target that outlived its test, such as one of setUpClass.
        print('--- sanitizer report in a target\'s log:\n' + report)
        result.counts['failed'] += 1
    counts = result.counts
    print(f'{counts["passed"]} passed, {counts["failed"]} failed, {counts["skipped"]} skipped',
          flush=True)
    sys.exit(1 if counts['failed'] else 0)


main = run_tests
