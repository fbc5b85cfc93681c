#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`make bench`: the target beside its peers, in one run.

Each round measures every case once, ours and the peers' one after the other, so that a slow
minute of the machine hits all of them; the table shows medians over the rounds with the lowest
and highest. The target has core 0 to itself and the load generator core 1. While a peer is
measured our target is stopped (SIGSTOP): it polls, and would eat the peer's core.

Peers: qemu-storage-daemon's vhost-user-blk export (the same load generator), fio with io_uring on
the same file, and plain memcpy for the RAM disk. What is missing is said and left out.
"""
import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MIB = 1 << 20


class Missing(Exception):
    """Something a measurement needs is not there."""


def say(text):
    print(text, flush=True)


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
        def pin():
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
        try:
            with open("/proc/%d/stat" % self.p.pid) as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            raise Missing("the process is gone: %s" % self.tail())
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
    """Our vhost with one null, one malloc and one file disk."""

    name = "target"

    def __init__(self, o, tmp, disk):
        binary = os.path.join(o.build, "bin", "vhost")
        if not os.access(binary, os.X_OK):
            raise Missing("%s is missing: run make first" % binary)
        self.cpu, self.tmp = o.target_cpu, tmp
        rpc = os.path.join(tmp, "rpc.sock")
        argv = [binary, "-S", tmp, "-r", rpc, "-m", hex(1 << o.target_cpu)]
        if free_huge() < (o.malloc_mib + 64) * MIB:
            say("note: too few free huge pages for the malloc disk, --no-huge is used "
                "(HUGEMEM=1024 scripts/setup.sh reserves some)")
            argv.append("--no-huge")
        self.proc = Process(argv + o.target_args, os.path.join(tmp, "vhost.log"))
        try:
            self.proc.wait_for(rpc, "the target")
            self.rpc = self.connect(rpc)
            self.disks = self.create(o, disk)
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

    def create(self, o, disk):
        disks = {}
        for kind, method, params in (
                ("null", "bdev_null_create", {"num_blocks": 1 << 21, "block_size": 512}),
                ("malloc", "bdev_malloc_create",
                 {"num_blocks": o.malloc_mib * 2048, "block_size": 512}),
                ("file", "bdev_uring_create", {"filename": disk, "block_size": 512})):
            try:
                self.rpc(method, name=kind, **params)
                self.rpc("vhost_create_blk_controller", ctrlr="b." + kind, dev_name=kind,
                         cpumask=hex(1 << self.cpu))
                disks[kind] = os.path.join(self.tmp, "b." + kind)
            except Missing as e:
                say("skip: %s disk of the target: %s" % (kind, e))
        return disks

    def busy(self):
        for r in self.rpc("framework_get_reactors")["reactors"]:
            if r["lcore"] == self.cpu:
                return r["busy"], r["idle"]
        raise Missing("no reactor on core %d" % self.cpu)

    def measure(self, kind, load):
        before = self.busy()
        result = load(self.disks[kind])
        after = self.busy()
        busy, idle = after[0] - before[0], after[1] - before[1]
        result["busy"] = busy / (busy + idle) if busy + idle > 0 else None
        return result


class Peer:
    """qemu-storage-daemon with one null and one file disk."""

    name = "qsd"

    def __init__(self, o, tmp, disk):
        binary = shutil.which("qemu-storage-daemon")
        if not binary:
            raise Missing("qemu-storage-daemon is not installed")
        self.disks = {k: os.path.join(tmp, "q." + k) for k in ("null", "file")}
        nodes = {
            "null": "driver=null-co,node-name=null,size=%d,read-zeroes=off" % (1 << 30),
            # locking=off: our target holds the same file
            "file": "driver=file,node-name=file,filename=%s,locking=off,cache.direct=on,"
                    "aio=io_uring" % disk}
        argv = [binary]
        for kind, node in nodes.items():
            argv += ["--blockdev", node, "--export",
                     "vhost-user-blk,id=e%s,node-name=%s,addr.type=unix,addr.path=%s,"
                     "writable=on" % (kind, kind, self.disks[kind])]
        self.proc = Process(argv, os.path.join(tmp, "qsd.log"), o.target_cpu)
        try:
            for path in self.disks.values():
                self.proc.wait_for(path, "qemu-storage-daemon")
        except BaseException:
            self.proc.end()
            raise

    def measure(self, kind, load):
        cpu, wall = self.proc.cpu_seconds(), time.monotonic()
        result = load(self.disks[kind])
        result["busy"] = (self.proc.cpu_seconds() - cpu) / (time.monotonic() - wall)
        return result


class Case:
    def __init__(self, kind, rw, bs, qd):
        self.kind, self.rw, self.bs, self.qd = kind, rw, bs, qd
        self.name = "%s %s %s QD%d" % (kind, rw, bs, qd)


CASES = ([Case("null", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("malloc", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("malloc", "randwrite", "4k", 32), Case("malloc", "read", "128k", 32)] +
         [Case("file", "randread", "4k", qd) for qd in (1, 32, 128)] +
         [Case("file", "randwrite", "4k", 32)])


def free_huge():
    found = {}
    with open("/proc/meminfo") as f:
        for line in f:
            key, value = line.split(":", 1)
            found[key] = int(value.split()[0])
    return found.get("HugePages_Free", 0) * found.get("Hugepagesize", 0) * 1024


def run_json(argv, timeout):
    try:
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Missing("%s took longer than %d s" % (os.path.basename(argv[0]), timeout))
    if p.returncode != 0:
        text = p.stderr.decode(errors="replace").strip() or "exit status %d" % p.returncode
        raise Missing(text.splitlines()[-1])
    text = p.stdout.decode()
    return json.loads(text[text.index("{"):])


def bench_argv(o, case):
    return [o.bench, "--qd", str(case.qd), "--bs", case.bs, "--rw", case.rw, "--runtime",
            str(o.runtime), "--cpu", str(o.client_cpu), "--json"] + o.client_args


def client(o, case):
    def load(path):
        return run_json(bench_argv(o, case) + ["--socket", path], o.runtime + 30)
    return load


def memcpy(o, case):
    return run_json(bench_argv(o, case) + ["--memcpy"], o.runtime + 30)


def fio(o, case, disk):
    if not shutil.which("fio"):
        raise Missing("fio is not installed")
    out = run_json(
        ["fio", "--name=f", "--filename=" + disk, "--direct=1", "--ioengine=io_uring",
         "--rw=" + case.rw, "--bs=" + case.bs, "--iodepth=%d" % case.qd, "--norandommap",
         "--randrepeat=0", "--time_based", "--runtime=%dms" % int(o.runtime * 1000), "--thread",
         "--cpus_allowed=%d" % o.client_cpu, "--output-format=json"], o.runtime + 60)
    job = out["jobs"][0]
    side = job["write" if "write" in case.rw else "read"]
    pct = side["clat_ns"].get("percentile", {})
    return {"iops": side["iops"], "busy": None,
            "lat_us": {"p50": pct.get("50.000000", 0) / 1000,
                       "p99": pct.get("99.000000", 0) / 1000}}


def make_disk(o):
    """A file on a real disk, written through, so that no read finds a hole."""
    os.makedirs(o.dir, exist_ok=True)
    fd, path = tempfile.mkstemp(prefix="bench-disk-", dir=o.dir)
    with os.fdopen(fd, "wb") as f:
        chunk = os.urandom(4 * MIB)
        for _ in range(o.file_mib // 4):
            f.write(chunk)
        f.flush()
        os.fsync(f.fileno())
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        os.unlink(path)
        raise Missing("%s is on a file system without O_DIRECT: use --dir" % o.dir)
    return path


class Results:
    """Samples by case and contender; a contender that failed once in a case is out of it."""

    def __init__(self):
        self.samples, self.failed = {}, {}

    def take(self, case, who, measure):
        key = (case.name, who)
        if key in self.failed:
            return
        try:
            self.samples.setdefault(key, []).append(measure())
        except (Missing, OSError, KeyError, ValueError) as e:
            self.failed[key] = str(e)
            say("skip: %s, %s: %s" % (case.name, who, e))

    def summary(self, case, who):
        got = self.samples.get((case.name, who))
        if not got or (case.name, who) in self.failed:
            return None
        iops = [g["iops"] for g in got]
        busy = [g["busy"] for g in got if g.get("busy") is not None]

        def lat(key):
            return statistics.median(g["lat_us"].get(key, 0) for g in got)
        return {"iops": statistics.median(iops), "min": min(iops), "max": max(iops),
                "busy": statistics.median(busy) if busy else None,
                "p50_us": lat("p50"), "p99_us": lat("p99"), "samples": iops}


def run_case(o, case, target, peer, disk, results):
    if target and case.kind in target.disks:
        target.proc.pause(False)
        results.take(case, "ours", lambda: target.measure(case.kind, client(o, case)))
        target.proc.pause(True)
    if peer and case.kind in peer.disks:
        results.take(case, "qsd", lambda: peer.measure(case.kind, client(o, case)))
    if case.kind == "malloc":
        results.take(case, "memcpy", lambda: memcpy(o, case))
    if case.kind == "file" and disk and not o.no_fio:
        results.take(case, "fio", lambda: fio(o, case, disk))


def ratio(ours, other):
    return "%.2fx" % (ours["iops"] / other["iops"]) if ours and other and other["iops"] else "-"


def kilo(value):
    return "%.1fk" % (value / 1000) if value < 1e6 else "%.3fM" % (value / 1e6)


def table(cases, results):
    head = ("case", "who", "IOPS", "min", "max", "busy", "at 100%", "p50 us", "p99 us",
            "ours/it")
    rows = []
    for case in cases:
        ours = results.summary(case, "ours")
        for who in ("ours", "qsd", "fio", "memcpy"):
            s = results.summary(case, who)
            if not s:
                continue
            busy = s["busy"]
            rows.append((
                case.name, who, kilo(s["iops"]), kilo(s["min"]), kilo(s["max"]),
                "-" if busy is None else "%.0f%%" % (busy * 100),
                "-" if not busy else kilo(s["iops"] / min(busy, 1)),
                "%.1f" % s["p50_us"] if s["p50_us"] else "-",
                "%.1f" % s["p99_us"] if s["p99_us"] else "-",
                "" if who == "ours" else ratio(ours, s)))
    widths = [max(len(r[i]) for r in rows + [head]) for i in range(len(head))]
    for r in [head] + rows:
        say("  ".join(c.ljust(w) if i < 2 else c.rjust(w)
                      for i, (c, w) in enumerate(zip(r, widths))).rstrip())


def options():
    p = argparse.ArgumentParser(description="Benchmark the target beside its peers.")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runtime", type=float, default=1.0, help="seconds a measurement")
    p.add_argument("--only", default="", help="cases whose name contains this")
    p.add_argument("--json", metavar="FILE", help="write everything measured there")
    p.add_argument("--dir", help="where the disk file goes: a real disk (default: the build)")
    p.add_argument("--file-mib", type=int, default=1024)
    p.add_argument("--malloc-mib", type=int, default=256)
    p.add_argument("--target-cpu", type=int, default=0)
    p.add_argument("--client-cpu", type=int, default=1)
    p.add_argument("--target-args", default="", help="more arguments for the target")
    p.add_argument("--client-args", default="", help="more for the load generator")
    p.add_argument("--no-peer", action="store_true", help="without qemu-storage-daemon")
    p.add_argument("--no-fio", action="store_true")
    p.add_argument("--socket", help="only drive this running vhost-user-blk socket")
    p.add_argument("--rpc", help="with --socket: its RPC socket, for the busy share")
    o = p.parse_args()
    o.build = os.path.join(REPO, os.environ.get("BUILD", "build"))
    o.bench = os.path.join(o.build, "test", "bench")
    o.dir = o.dir or os.path.join(o.build, "bench-data")
    o.target_args, o.client_args = o.target_args.split(), o.client_args.split()
    return o


class Foreign(Target):
    """Somebody's running socket: cases by queue depth only; busy shares over its RPC."""

    def __init__(self, o):
        self.cpu, self.disks = o.target_cpu, {"socket": o.socket}
        self.rpc = Rpc(o.rpc) if o.rpc else None

    def measure(self, kind, load):
        return Target.measure(self, kind, load) if self.rpc else load(self.disks[kind])


def run_foreign(o, results):
    cases = [Case("socket", "randread", "4k", qd) for qd in (1, 32, 128)]
    target = Foreign(o)
    for _ in range(o.rounds):
        for case in cases:
            results.take(case, "ours", lambda c=case: target.measure("socket", client(o, c)))
    return cases


def run_all(o, results):
    cases = [c for c in CASES if o.only in c.name]
    tmp = tempfile.mkdtemp(prefix="spb", dir="/tmp")
    target = peer = disk = None
    try:
        if any(c.kind == "file" for c in cases):
            disk = attempt("the disk file", lambda: make_disk(o))
        target = attempt("our target", lambda: Target(o, tmp, disk or "/nonexistent"))
        if not o.no_peer:
            peer = attempt("the peer", lambda: Peer(o, tmp, disk or "/dev/null"))
        for n in range(o.rounds):
            say("round %d of %d" % (n + 1, o.rounds))
            for case in cases:
                run_case(o, case, target, peer, disk, results)
    finally:
        for one in (target, peer):
            if one:
                one.proc.end()
        if disk:
            os.unlink(disk)
            if not os.listdir(o.dir):
                os.rmdir(o.dir)
        shutil.rmtree(tmp, ignore_errors=True)
    return cases


def attempt(what, make):
    try:
        return make()
    except (Missing, OSError) as e:
        say("skip: %s: %s" % (what, e))
        return None


def stop(signum, _frame):
    sys.exit(128 + signum)


def main():
    signal.signal(signal.SIGTERM, stop)
    o = options()
    if not os.access(o.bench, os.X_OK):
        say("%s is missing: run make bench" % o.bench)
        return 1
    if max(o.target_cpu, o.client_cpu) >= os.cpu_count():
        say("note: this machine has %d cores; target and load share them" % os.cpu_count())
        o.target_cpu = o.client_cpu = 0
    results = Results()
    started = time.monotonic()
    cases = run_foreign(o, results) if o.socket else run_all(o, results)
    say("")
    table(cases, results)
    say("\nmedians of %d rounds of %g s each, %.0f s in all; busy: share of the target's core; "
        "at 100%%: IOPS / busy" % (o.rounds, o.runtime, time.monotonic() - started))
    if o.json:
        with open(o.json, "w") as f:
            json.dump({c.name: {w: results.summary(c, w)
                                for w in ("ours", "qsd", "fio", "memcpy")
                                if results.summary(c, w)} for c in cases}, f, indent=1)
            f.write("\n")
    return 0 if any(results.summary(c, "ours") for c in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
