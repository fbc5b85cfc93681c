#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
r"""`make bench`: the target beside its peers, in one run.

    python3 test/bench/run.py --json build/bench.json --svg docs/performance.svg \
        --markdown docs/performance.md
    python3 test/bench/run.py --from build/bench.json --svg F --markdown -   # say it again
    python3 test/bench/run.py --socket PATH [--rpc PATH]         # anybody's running target

Each round measures every case once with every contender, one after the other and each first in
turn, so that a slow minute of the machine hits all of them. Printed are medians over the rounds,
the lowest and the highest. The target has core 0 to itself and the load generator core 1; limits
(fio, memcpy) are measured on the target's core, which does their work otherwise, and may be a
slower one than the other. While another is measured our target is stopped (SIGSTOP): it polls, and
would eat the other's core.

Peers: qemu-storage-daemon's vhost-user-blk export, an I/O thread for each disk, driven by the same
load generator; fio with io_uring on the same file, without any virtqueue, also beside loops that
keep both cores busy; plain memcpy for the RAM disk. What is missing is said and left out.

busy is what the target used of its core while the load's clock ran: by its own count of ticks in
passes that found work, for one that polls; by its CPU time, for any other. IOPS a core is IOPS over
busy: what a full core would do, where the client is the limit.

A sample during which others (or the hypervisor) took more than --quiet of a core is measured again,
and the quieter one is kept: chosen by CPU time, never by a result.
"""
import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import picture                                                      # noqa: E402
import verdict                                                      # noqa: E402
from report import (Missing, Others, Results, info_of, machine,     # noqa: E402
                    process_seconds, say, write, write_between, write_json)

MIB = 1 << 20
PR_SET_PDEATHSIG = 1
TRIES = 2
WHO = ("ours", "qsd", "fio", "fio busy", "memcpy", "1 reactor", "2 reactors")


class Rpc:
    """One JSON-RPC connection."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.id = 0

    def __call__(self, method, **params):
        self.id += 1
        call = {"jsonrpc": "2.0", "id": self.id, "method": method}
        if params:
            call["params"] = params
        self.sock.sendall(json.dumps(call).encode())
        text = ""
        while True:
            data = self.sock.recv(65536)
            if not data:
                raise Missing("%s: the target closed its RPC socket" % method)
            text += data.decode()
            try:
                answer = json.loads(text)
                break
            except ValueError:
                continue
        if "error" in answer:
            raise Missing("%s: %s" % (method, answer["error"].get("message")))
        return answer["result"]


class Process:
    """A child that is always ended, by its own pid, stopped or not."""

    def __init__(self, argv, log, cpu=None):
        libc = ctypes.CDLL(None)

        def pin():
            # It polls: it must not outlive us, whatever ends us.
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
        self.log = log
        with open(log, "wb") as out:
            self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                      stderr=subprocess.STDOUT, preexec_fn=pin)

    def wait_for(self, path, what, seconds=10):
        deadline = time.monotonic() + seconds
        while not os.path.exists(path):
            if self.p.poll() is not None or time.monotonic() > deadline:
                raise Missing("%s did not start: %s" % (what, self.tail()))
            time.sleep(0.01)

    def tail(self):
        with open(self.log, errors="replace") as f:
            return " | ".join(f.read().strip().splitlines()[-3:]) or "(no output)"

    def cpu_seconds(self):
        if self.p.poll() is not None:
            raise Missing("the process is gone: %s" % self.tail())
        return process_seconds(self.p.pid)

    def pause(self, on):
        self.p.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def end(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGCONT)
            self.p.terminate()
            try:
                self.p.wait(5)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()


class Target:
    """Our vhost on `cpus`, with a disk of each kind; stopped until resumed."""

    name = "ours"

    def __init__(self, o, tmp, files, cpus, kinds, args=()):
        self.cpus, self.tmp = cpus, tempfile.mkdtemp(prefix="v", dir=tmp)
        binary = os.path.join(o.build, "bin", "vhost")
        rpc = os.path.join(self.tmp, "rpc.sock")
        if not os.access(binary, os.X_OK):
            raise Missing("%s is missing: run make first" % binary)
        argv = [binary, "-S", self.tmp, "-r", rpc, "-m", hex(sum(1 << c for c in cpus))]
        if len(cpus) > 1 or args:
            argv.append("--disable-cpumask-locks")      # the first of ours has core 0, stopped
        if free_huge() < (o.malloc_mib + 64) * MIB:
            say("note: too few free huge pages for the malloc disk, --no-huge is used "
                "(HUGEMEM=1024 scripts/setup.sh reserves some)")
            argv.append("--no-huge")
            o.notes.append("the target had no huge pages")
        self.proc = Process(argv + list(args) + o.target_args, os.path.join(self.tmp, "vhost.log"))
        try:
            self.proc.wait_for(rpc, "the target")
            self.rpc = self.connect(rpc)
            self.disks = self.create(o, files, kinds)
            self.proc.pause(True)
        except BaseException:
            self.proc.end()
            raise

    def connect(self, path):
        for _ in range(500):
            try:
                return Rpc(path)
            except (ConnectionRefusedError, FileNotFoundError):
                time.sleep(0.01)
        raise Missing("the target's RPC socket does not answer: %s" % self.proc.tail())

    def create(self, o, files, kinds):
        disks = {}
        null = {"num_blocks": 1 << 21, "block_size": 512}
        for kind, method, params, more in (
                ("null", "bdev_null_create", null, {}),
                ("packed", "bdev_null_create", null, {"packed_ring": True}),
                ("malloc", "bdev_malloc_create",
                 {"num_blocks": o.malloc_mib * 2048, "block_size": 512}, {}),
                *((kind, "bdev_uring_create", {"filename": path, "block_size": 512}, {})
                  for kind, path in files.items())):
            if kind not in kinds:
                continue
            try:
                self.rpc(method, name=kind, **params)
                self.rpc("vhost_create_blk_controller", ctrlr="b." + kind, dev_name=kind,
                         cpumask=hex(sum(1 << c for c in self.cpus)), **more)
                disks[kind] = os.path.join(self.tmp, "b." + kind)
            except Missing as e:
                say("skip: %s disk of the target: %s" % (kind, e))
        return disks

    def measure(self, case, load):
        if self.proc:
            self.proc.pause(False)
        try:
            before = Reactors(self.rpc)
            result = load(self.disks[case.disk])
            after = Reactors(self.rpc)
        finally:
            if self.proc:
                self.proc.pause(True)
        # Its thread polls while it waits: only its own count tells work from waiting.
        result["busy"] = after.busy_since(before, len(self.cpus) > 1) / result["seconds"]
        return result

    def end(self):
        self.proc.end()


class Reactors:
    """One reading of the reactors' counters."""

    def __init__(self, rpc):
        got = rpc("framework_get_reactors")
        self.hz, self.reactors = got["tick_rate"], got["reactors"]
        self.cpu = [self.thread_seconds(got["pid"], r["tid"]) for r in self.reactors]

    @staticmethod
    def thread_seconds(pid, tid):
        with open("/proc/%d/task/%d/schedstat" % (pid, tid)) as f:
            return int(f.read().split()[0]) / 1e9

    def busy_since(self, before, shared):
        """Busy seconds of all reactors: never more than their CPU time, as a pass that was
        interrupted counts ticks that others used. Where a reactor shares its core that is the
        rule: then it is the busy share of the thread's CPU time."""
        total = 0.0
        for r, was, cpu, cpu_was in zip(self.reactors, before.reactors, self.cpu, before.cpu):
            busy, idle = r["busy"] - was["busy"], r["idle"] - was["idle"]
            if not shared:
                total += min(busy / self.hz, cpu - cpu_was)
            elif busy + idle > 0:
                total += (cpu - cpu_was) * busy / (busy + idle)
        return total


class Foreign(Target):
    """Somebody's running socket."""

    def __init__(self, o):
        self.cpus, self.disks, self.proc = [o.target_cpu], {"socket": o.socket}, None
        self.rpc = Rpc(o.rpc) if o.rpc else None

    def measure(self, case, load):
        return Target.measure(self, case, load) if self.rpc else with_cpu_time(
            load(self.disks[case.disk]))

    def end(self):
        pass


def with_cpu_time(result):
    """busy of a target that sleeps when it has nothing to do; the load generator measured it."""
    if result.get("target_pid") and result["seconds"]:
        result["busy"] = result["target_cpu_s"] / result["seconds"]
    return result


class Peer:
    """qemu-storage-daemon with a null disk and the files, an I/O thread each."""

    name = "qsd"

    def __init__(self, o, tmp, files):
        binary = shutil.which("qemu-storage-daemon")
        if not binary:
            raise Missing("qemu-storage-daemon is not installed")
        nodes = {"null": "driver=null-co,node-name=null,size=%d,read-zeroes=off" % (1 << 30)}
        for kind, path in files.items():
            # locking=off: our target holds the same file
            nodes[kind] = ("driver=file,node-name=%s,filename=%s,locking=off,"
                           "cache.direct=on,aio=io_uring" % (kind, path))
        self.disks = {k: os.path.join(tmp, "q." + k) for k in nodes}
        argv = [binary]
        for kind, node in nodes.items():
            argv += ["--object", "iothread,id=t%s" % kind, "--blockdev", node, "--export",
                     "vhost-user-blk,id=e%s,node-name=%s,addr.type=unix,addr.path=%s,"
                     "writable=on,iothread=t%s" % (kind, kind, self.disks[kind], kind)]
        self.proc = Process(argv, os.path.join(tmp, "qsd.log"), o.target_cpu)
        try:
            for path in self.disks.values():
                self.proc.wait_for(path, "qemu-storage-daemon")
        except BaseException:
            self.proc.end()
            raise

    def measure(self, case, load):
        return with_cpu_time(load(self.disks[case.disk]))

    def end(self):
        self.proc.end()


class Case:
    """One workload; `extra`: more arguments for the load generator, `word`: their name."""

    def __init__(self, kind, rw, bs, qd, extra=(), word="", disk=None):
        self.kind, self.rw, self.bs, self.qd = kind, rw, bs, qd
        self.extra, self.word, self.disk = list(extra), word, disk or kind
        self.name = "%s %s %s QD%d%s" % (kind, rw, bs, qd, " " + word if word else "")


MIX = ["--read-pct", "70"]
SLEEPING = "sleeping"
CASES = ([Case("null", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("null", "randread", "4k", 32, ["--rewrite"], "rewritten"),
          Case("null", "randread", "4k", 32, ["--packed"], "packed", "packed"),
          Case("null", "randread", "4k", 32, ["--no-inflight"], "no-inflight")] +
         [Case("malloc", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("malloc", "randwrite", "4k", 32),
          Case("malloc", "randrw", "4k", 32, MIX, "70/30"),
          Case("malloc", "read", "128k", 32), Case("malloc", "write", "128k", 32)] +
         [Case("file", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("file", "randwrite", "4k", 32),
          Case("file", "randrw", "4k", 32, MIX, "70/30"),
          Case("file", "read", "128k", 32), Case("file", "write", "128k", 32)] +
         [Case("file", "randread", "4k", qd, ["--wait", "--event-idx"], SLEEPING)
          for qd in (1, 32, 128)] +
         [Case("cached", "randread", "4k", qd) for qd in (1, 32, 128)])

# Deep queues, a client that sleeps and is called once for many completions: where it shares a core
# with the second reactor, that one gets most of it.
DUO = ["--queues", "2", "--wait", "--event-idx", "--calls", "512", "--indirect"]
DUO_CASES = [Case(kind, "randread", "4k", 1024, DUO, "2 queues") for kind in ("null", "malloc")]


def free_huge():
    pages, size = (info_of("/proc/meminfo", k) for k in ("HugePages_Free", "Hugepagesize"))
    return int(pages or 0) * int((size or "0 kB").split()[0]) * 1024


def run_json(argv, timeout, first=None):
    """`first`: run in the child before it becomes argv."""
    try:
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=timeout, check=False, preexec_fn=first)
    except subprocess.TimeoutExpired:
        raise Missing("%s took longer than %d s" % (os.path.basename(argv[0]), timeout))
    if p.returncode != 0:
        text = p.stderr.decode(errors="replace").strip() or "exit status %d" % p.returncode
        raise Missing(text.splitlines()[-1])
    text = p.stdout.decode()
    return json.loads(text[text.index("{"):])


def bench_argv(o, case):
    return [o.bench, "--qd", str(case.qd), "--bs", case.bs, "--rw", case.rw, "--runtime",
            str(o.runtime), "--cpu", str(o.client_cpu), "--json"] + case.extra + o.client_args


def client(o, case):
    def load(path):
        return run_json(bench_argv(o, case) + ["--socket", path], o.runtime + 30)
    return load


def urgent():
    """Ahead of a reactor on the same core, whenever it is awake; only root may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass


def duo_client(o, case):
    def load(path):
        return run_json(bench_argv(o, case) + ["--socket", path], o.runtime + 30, urgent)
    return load


def memcpy(o, case):
    return run_json(bench_argv(o, case) + ["--memcpy", "--cpu", str(o.target_cpu)], o.runtime + 30)


def loop_argv(o, cpu, seconds):
    return [o.bench, "--gaps", "--cpu", str(cpu), "--runtime", str(seconds)]


def two_loops(o):
    with subprocess.Popen(loop_argv(o, o.client_cpu, 0.6), stdout=subprocess.DEVNULL):
        return run_json(loop_argv(o, o.target_cpu, 0.5), 30)


def idly():
    """Only when nobody else wants the core, and at once away then."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def fio_beside_loops(o, case, disk, still):
    """What is left of the disk when both cores are always busy, as a polling target and a polling
    client keep them: a loop on the one, on fio's another that runs while fio sleeps."""
    seconds = o.runtime + 60
    with subprocess.Popen(loop_argv(o, o.client_cpu, seconds), stdout=subprocess.PIPE) as loop, \
         subprocess.Popen(loop_argv(o, o.target_cpu, seconds), stdout=subprocess.DEVNULL,
                          preexec_fn=idly) as idle:
        try:
            result = fio(o, case, disk)
        finally:
            loop.send_signal(signal.SIGINT)
            idle.send_signal(signal.SIGINT)
        still.append(json.loads(loop.stdout.read()))
    return result


def fio(o, case, disk):
    if not shutil.which("fio"):
        raise Missing("fio is not installed")
    mix = ["--rwmixread=%s" % case.extra[1]] if case.extra[:1] == ["--read-pct"] else []
    out = run_json(
        ["fio", "--name=f", "--filename=" + disk, "--direct=1", "--ioengine=io_uring",
         "--rw=" + case.rw, "--bs=" + case.bs, "--iodepth=%d" % case.qd, "--norandommap",
         "--randrepeat=0", "--time_based", "--runtime=%dms" % int(o.runtime * 1000),
         "--ramp_time=100ms", "--thread", "--cpus_allowed=%d" % o.target_cpu,
         "--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:90:99:99.9:99.99",
         "--output-format=json"] + (["--invalidate=0"] if case.kind == "cached" else []) + mix,
        o.runtime + 60)
    job = out["jobs"][0]
    sides = [s for s in (job["read"], job["write"]) if s["iops"]]
    if not sides:
        raise Missing("fio did no I/O")
    # Of a mix: the slower side's, as what happens to reads and writes together is not told.
    pct = {k: max(s["lat_ns"].get("percentile", {}).get("%f" % float(k[1:]), 0) for s in sides)
           / 1000 for k in ("p50", "p90", "p99", "p99.9", "p99.99")}
    return {"iops": sum(s["iops"] for s in sides), "seconds": o.runtime,
            "lat_us": {**pct, "max": max(s["lat_ns"]["max"] for s in sides) / 1000}}


def fill(f, mib):
    chunk = os.urandom(4 * MIB)
    for _ in range(mib // 4):
        f.write(chunk)


def make_disk(o):
    """A file on a real disk, written through, so that no read finds a hole."""
    os.makedirs(o.dir, exist_ok=True)
    fd, path = tempfile.mkstemp(prefix="bench-disk-", dir=o.dir)
    with os.fdopen(fd, "wb") as f:
        fill(f, o.file_mib)
        f.flush()
        os.fsync(f.fileno())
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        os.unlink(path)
        raise Missing("%s is on a file system without O_DIRECT: use --dir" % o.dir)
    return path


class CachedFile:
    """A file whose reads never reach a disk, on an ext4 of its own with data=journal: that takes
    O_DIRECT and reads through the page cache all the same."""

    def __init__(self, o, tmp):
        mib = min(o.file_mib, 256)
        if os.geteuid() != 0:
            raise Missing("only root may mount its file system")
        os.makedirs(o.dir, exist_ok=True)
        self.mount = os.path.join(tmp, "cached")
        self.image = os.path.join(o.dir, "bench-cached-%d" % os.getpid())
        self.path = os.path.join(self.mount, "disk")
        os.mkdir(self.mount)
        try:
            with open(self.image, "wb") as f:
                f.truncate((mib + 128) * MIB)
            self.run("mkfs.ext4", "-q", "-F", self.image)
            self.run("mount", "-o", "loop", self.image, self.mount)
            with open(self.path, "wb") as f:
                fill(f, mib)
            self.run("umount", self.mount)
            self.run("mount", "-o", "loop,data=journal", self.image, self.mount)
            os.unlink(self.image)       # gone with the mount
            with open(self.path, "rb") as f:
                while f.read(4 * MIB):
                    pass
        except BaseException:
            self.end()
            raise

    @staticmethod
    def run(*argv):
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, check=False)
        if p.returncode != 0:
            raise Missing("%s: %s" % (argv[0], p.stdout.decode(errors="replace").strip()))

    def end(self):
        # A ring that had the file registered may take a moment to let go of it.
        if os.path.ismount(self.mount):
            self.run("umount", "--lazy", self.mount)
        if os.path.exists(self.image):
            os.unlink(self.image)


class Stage:
    """All contenders of a run, and who of them can play which case."""

    def __init__(self, o, tmp):
        self.o, self.results = o, Results()
        self.target = self.duo = self.patient = self.peer = self.cached = None
        self.files = {}     # by kind
        self.owned = []     # those of them on o.dir
        self.tmp = tmp
        self.retries = self.loud = self.taken = 0
        self.trips = []     # nanoseconds, one a round
        self.still, self.still_idle = [], []    # what --gaps saw: beside fio, and beside a loop

    def open(self, cases):
        o = self.o
        kinds = {c.disk for c in cases}
        if "file" in kinds:
            self.add_file("file")
        if "cached" in kinds:
            self.cached = attempt("the file in the page cache", lambda: CachedFile(o, self.tmp))
            if self.cached:
                self.files["cached"] = self.cached.path
        self.target = attempt("our target", lambda: Target(o, self.tmp, self.files,
                                                           [o.target_cpu], kinds))
        duo = {c.disk for c in cases if c.word == "2 queues"}
        if duo and o.duo_cpu != o.target_cpu:
            self.duo = attempt("two reactors", lambda: Target(
                o, self.tmp, {}, [o.target_cpu, o.duo_cpu], duo))
        if any(c.word == SLEEPING for c in cases):
            # A file of its own: the first target's is locked.
            own = self.add_file("file of the one that sleeps")
            self.patient = own and attempt("a target that sleeps", lambda: Target(
                o, self.tmp, {"file": own}, [o.target_cpu], {"file"}, ("--poll-us", "200")))
        if not o.no_peer and kinds & {"null", "file", "cached"}:
            self.peer = attempt("the peer", lambda: Peer(o, self.tmp, {
                k: p for k, p in self.files.items() if k in kinds}))

    def add_file(self, kind):
        path = attempt("the disk file", lambda: make_disk(self.o))
        if path:
            self.files[kind] = path
            self.owned.append(path)
        return path

    def close(self):
        for one in (self.target, self.duo, self.patient, self.peer, self.cached):
            if one:
                one.end()
        for path in self.owned:
            os.unlink(path)
        if os.path.isdir(self.o.dir) and not os.listdir(self.o.dir):
            os.rmdir(self.o.dir)

    def players(self, case):
        o, made = self.o, []
        if case.word == "2 queues":
            for who, one in (("1 reactor", self.target), ("2 reactors", self.duo)):
                if one and case.disk in one.disks:
                    made.append((who, lambda t=one: t.measure(case, duo_client(o, case))))
            return made
        for one in (self.patient if case.word == SLEEPING else self.target, self.peer):
            if one and case.disk in one.disks:
                made.append((one.name, lambda t=one: t.measure(case, client(o, case))))
        if case.kind == "malloc":
            made.append(("memcpy", lambda: memcpy(o, case)))
        disk = self.files.get(case.disk)
        if disk and not o.no_fio:
            made.append(("fio", lambda: fio(o, case, disk)))
            if case.kind == "file" and case.rw == "randread" and not case.word:
                made.append(("fio busy", lambda: fio_beside_loops(o, case, disk, self.still)))
        return made

    def sample(self, measure):
        """The quietest of a few tries; the tries of a whole run are bounded."""
        best = None
        pids = [one.proc.p.pid for one in (self.target, self.duo, self.patient, self.peer)
                if one and one.proc]
        for _ in range(1 + TRIES):
            others = Others(pids)
            got = measure()
            got["others"] = others.share()
            if best is None or got["others"] < best["others"]:
                best = got
            if best["others"] <= self.o.quiet or self.retries <= 0:
                break
            self.retries -= 1
        self.taken += 1
        self.loud += best["others"] > self.o.quiet
        return best

    def play(self, cases):
        o = self.o
        self.retries = len(cases) * o.rounds // 3
        for n in range(o.rounds):
            say("round %d of %d" % (n + 1, o.rounds))
            self.results.round = n
            if o.target_cpu != o.client_cpu:
                self.trips.append(run_json([o.bench, "--cpu", str(o.client_cpu), "--ping",
                                            str(o.target_cpu)], 30)["round_trip_ns"])
                if self.files and not o.no_fio:
                    attempt("two loops", lambda: self.still_idle.append(two_loops(o)))
            for case in cases:
                players = self.players(case)
                for who, measure in players[n % len(players):] + players[:n % len(players)] \
                        if players else []:
                    self.results.take(case, who, lambda m=measure: self.sample(m))


def collect(o, stage, cases, seconds):
    """Everything measured, as what is written to --json and all output is made of."""
    r, out = stage.results, []
    for case in cases:
        who = {w: s for w in WHO for s in [r.summary(case, w)] if s}
        ratios = {w: r.ratio(case, "ours", w) for w in who if w != "ours" and "ours" in who}
        # What a busy core does with two reactors, over what it does with one; and there are two.
        scale = r.ratio(case, "2 reactors", "1 reactor",
                        lambda s: s["iops"] / s["busy"] if s.get("busy") else 0)
        if scale:
            ratios["scaling"] = {k: 2 * v for k, v in scale.items()}
        out.append({"name": case.name, "kind": case.kind, "rw": case.rw, "bs": case.bs,
                    "qd": case.qd, "word": case.word, "who": who, "ours_over": ratios})
    data = {"machine": o.machine,
            "setup": {"rounds": o.rounds, "runtime_s": o.runtime, "target_core": o.target_cpu,
                      "client_core": o.client_cpu, "second_reactor_core": o.duo_cpu,
                      "malloc_mib": o.malloc_mib, "file_mib": o.file_mib,
                      "client_args": o.client_args, "target_args": o.target_args,
                      "seconds": round(seconds), "samples": stage.taken, "loud": stage.loud,
                      "quiet": o.quiet, "line_round_trip_ns": stage.trips,
                      "still": stage.still, "still_idle": stage.still_idle,
                      "notes": sorted(set(o.notes))},
            "cases": out,
            "failed": {"%s, %s" % k: v for k, v in r.failed.items()}}
    data["goals"] = verdict.goals(data) if not o.socket else []
    return data


def options():
    p = argparse.ArgumentParser(description="Benchmark the target beside its peers.")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--runtime", type=float, default=0.6, help="seconds a measurement")
    p.add_argument("--only", default="", help="cases whose name contains this")
    p.add_argument("--json", metavar="FILE", help="write everything measured there")
    p.add_argument("--svg", metavar="FILE", help="draw it there")
    p.add_argument("--markdown", metavar="FILE",
                   help="tables, into a page that has a place for them; -: print")
    p.add_argument("--from", dest="source", metavar="FILE",
                   help="measure nothing, take what --json wrote")
    p.add_argument("--dir", help="where the disk file goes: a real disk (default: the build)")
    p.add_argument("--file-mib", type=int, default=1024)
    p.add_argument("--malloc-mib", type=int, default=256)
    p.add_argument("--target-cpu", type=int, default=0)
    p.add_argument("--client-cpu", type=int, default=1)
    p.add_argument("--target-args", default="", help="more arguments for the target")
    p.add_argument("--client-args", default="", help="more for the load generator")
    p.add_argument("--quiet", type=float, default=0.15, metavar="SHARE",
                   help="measure again when others used more of a core")
    p.add_argument("--no-peer", action="store_true", help="without qemu-storage-daemon")
    p.add_argument("--no-fio", action="store_true")
    p.add_argument("--socket", help="only drive this running vhost-user-blk socket")
    p.add_argument("--rpc", help="with --socket: its RPC socket, for the busy share")
    o = p.parse_args()
    o.build = os.path.join(REPO, os.environ.get("BUILD", "build"))
    o.bench = os.path.join(o.build, "test", "bench")
    o.dir = o.dir or os.path.join(o.build, "bench-data")
    o.target_args, o.client_args = o.target_args.split(), o.client_args.split()
    o.notes = []
    return o


def attempt(what, make):
    try:
        return make()
    except (Missing, OSError) as e:
        say("skip: %s: %s" % (what, e))
        return None


def choose_cores(o):
    usable = sorted(os.sched_getaffinity(0))
    if not {o.target_cpu, o.client_cpu} <= set(usable):
        o.notes.append("target and load share a core")
        o.target_cpu = o.client_cpu = o.duo_cpu = usable[0]
        return
    spare = [c for c in usable if c not in (o.target_cpu, o.client_cpu)]
    o.duo_cpu = spare[0] if spare else o.client_cpu


def measure_all(o):
    started = time.monotonic()
    tmp = tempfile.mkdtemp(prefix="spb", dir="/tmp")
    stage = Stage(o, tmp)
    cases = [c for c in CASES + DUO_CASES if o.only in c.name]
    try:
        if o.socket:
            cases = [Case("socket", "randread", "4k", qd) for qd in (1, 32, 128)]
            stage.target = Foreign(o)
        else:
            stage.open(cases)
        stage.play(cases)
    finally:
        stage.close()
        shutil.rmtree(tmp, ignore_errors=True)
    return collect(o, stage, cases, time.monotonic() - started)


def stop(signum, _frame):
    sys.exit(128 + signum)


def main():
    signal.signal(signal.SIGTERM, stop)
    o = options()
    if o.source:
        with open(o.source) as f:
            data = json.load(f)
    else:
        if not os.access(o.bench, os.X_OK):
            say("%s is missing: run make bench" % o.bench)
            return 1
        choose_cores(o)
        o.machine = machine(REPO)
        for line in verdict.heading(o.machine, o):
            say(line)
        data = measure_all(o)
    say("\n" + verdict.text(data))
    if o.json:
        write_json(o.json, data)
    if o.svg:
        write(o.svg, picture.draw(data))
    if o.markdown:
        write_between(o.markdown, verdict.markdown_page(data), "make bench")
    return 0 if any(c["who"] for c in data["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
