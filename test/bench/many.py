#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`python3 test/bench/many.py`: what many disks cost, and how well they get on with each other.

    idle      an active disk beside DISKS attached ones that do nothing, and what each of those
              takes of the target's memory, beyond the guest's own
    create    DISKS bdevs and controllers over one RPC connection, without and with --state
    fair      a guest with one small request at a time beside one that reads as fast as it can
    sleep     CPU time of a target that has nothing to do; one request at a time on one that may
              sleep beside one that may not
    start     from exec to the first RPC answer, and resident memory then

The target has core 0 and the load generator core 1. --binary names another vhost to measure, for
a before and after. Nothing here passes or fails; the last lines are the table.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(REPO, "test", "functional"))
from run import Missing, Process, Rpc, run_json, say, stop  # noqa: E402

MIB = 1 << 20


class Target:
    """A vhost of its own, with its RPC connection."""

    def __init__(self, o, *args):
        self.dir = tempfile.mkdtemp(prefix="spm", dir="/tmp")
        rpc = os.path.join(self.dir, "rpc.sock")
        self.proc = Process([o.binary, "-S", self.dir, "-r", rpc, "-m", "0x1"] + list(args),
                            os.path.join(self.dir, "log"))
        try:
            self.proc.wait_for(rpc, "the target")
            self.rpc = self.connect(rpc)
        except BaseException:
            self.end()
            raise

    @staticmethod
    def connect(rpc):
        for _ in range(1000):
            try:
                return Rpc(rpc)
            except (ConnectionRefusedError, FileNotFoundError):
                time.sleep(0.005)
        raise Missing("the RPC socket does not answer")

    def disk(self, name, kind="null", mib=64):
        self.rpc("bdev_%s_create" % kind, name=name, num_blocks=mib * 2048, block_size=512)
        self.rpc("vhost_create_blk_controller", ctrlr="c." + name, dev_name=name)
        return os.path.join(self.dir, "c." + name)

    def memory_kib(self):
        """Anonymous resident memory and huge pages: not the guests', which are files."""
        found = {}
        with open("/proc/%d/status" % self.proc.p.pid) as f:
            for line in f:
                key, _, rest = line.partition(":")
                if rest.strip().endswith("kB"):
                    found[key] = int(rest.split()[0])
        return found

    def end(self):
        self.proc.end()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.end()


def bench(o, path, qd, bs="4k", *args):
    return run_json([o.bench, "--socket", path, "--qd", str(qd), "--bs", bs, "--runtime",
                     str(o.runtime), "--cpu", "1", "--json"] + list(args), o.runtime + 30)


def median(samples):
    return statistics.median(samples)


def attach(t, count, prefix="n"):
    """That many disks, each with a front end whose one ring has been used."""
    import frontend
    fes = []
    for i in range(count):
        fe = frontend.Frontend.connect(t.disk("%s%d" % (prefix, i)), queues=1, queue_size=128,
                                       mem_size=MIB)
        fe.read(0, 4096)
        fes.append(fe)
    return fes


def idle_and_memory(o, rows):
    with Target(o) as t:
        active = t.disk("active")
        # The first front end pays for what all share.
        fes = attach(t, 1)
        alone, beside = [], []
        for _ in range(o.rounds):
            alone.append(bench(o, active, 32)["iops"])
        before = t.memory_kib()
        began = time.monotonic()
        fes += attach(t, o.disks, "d")
        took = time.monotonic() - began
        time.sleep(0.3)
        after = t.memory_kib()
        for _ in range(o.rounds):
            beside.append(bench(o, active, 32)["iops"])
        anon = (after["RssAnon"] - before["RssAnon"]) / o.disks
        huge = (after["HugetlbPages"] - before["HugetlbPages"]) / o.disks
        ratio = median(beside) / median(alone)
        rows.append(("null QD32 alone", "%.2fM IOPS" % (median(alone) / 1e6), ""))
        rows.append(("null QD32 beside %d idle disks" % o.disks,
                     "%.2fM IOPS" % (median(beside) / 1e6), "%.2fx" % ratio))
        rows.append(("memory of an idle disk", "%.1f KiB" % (anon + huge),
                     "%.1f anonymous, %.1f huge" % (anon, huge)))
        rows.append(("%d disks attached" % o.disks, "%.1f s" % took, "with their creation"))
        for fe in fes:
            fe.destroy()


def create_one_by_one(t, o, kind):
    began = time.monotonic()
    for i in range(o.disks):
        t.disk("%s%d" % (kind, i), kind, 1)
    return time.monotonic() - began


def create_pipelined(t, o, kind):
    """All calls at once, in one connection, as a script may send them; then all answers."""
    import threading
    text = []
    for i in range(o.disks):
        text.append(json.dumps({
            "jsonrpc": "2.0", "id": 2 * i, "method": "bdev_%s_create" % kind,
            "params": {"name": "p%d" % i, "num_blocks": 2048, "block_size": 512}}))
        text.append(json.dumps({
            "jsonrpc": "2.0", "id": 2 * i + 1, "method": "vhost_create_blk_controller",
            "params": {"ctrlr": "cp%d" % i, "dev_name": "p%d" % i}}))
    began = time.monotonic()
    sender = threading.Thread(target=t.rpc.sock.sendall, args=("\n".join(text).encode(),))
    sender.start()
    lines = 0
    while lines < len(text):
        data = t.rpc.sock.recv(1 << 16)
        if not data:
            raise Missing("the target closed its RPC socket")
        if b'"error"' in data:
            raise Missing("refused: %.200s" % data.decode())
        lines += data.count(b"\n")
    sender.join()
    return time.monotonic() - began


def create(o, rows):
    for kind in o.kinds.split(","):
        for name, make in (("one by one", create_one_by_one), ("pipelined", create_pipelined)):
            for state in (False, True):
                with tempfile.TemporaryDirectory(prefix="spm", dir=o.dir) as d:
                    args = ["--state", os.path.join(d, "state.json")] if state else []
                    if kind == "malloc":
                        args.append("--no-huge")
                    with Target(o, *args) as t:
                        took = make(t, o, kind)
                        rows.append(("create %d %s disks, %s%s" %
                                     (o.disks, kind, name, ", --state" if state else ""),
                                     "%.2f s" % took, "%.2f ms a call" %
                                     (took * 500 / o.disks)))


def fair(o, rows):
    with Target(o, *(["--no-huge"] if o.no_huge else [])) as t:
        small, big = t.disk("small", "malloc", 16), t.disk("big", "malloc", 256)
        quiet, noisy, alone = [], [], []
        for _ in range(o.rounds):
            quiet.append(bench(o, small, 1))
            alone.append(bench(o, big, 128, "128k"))
            noisy.append(bench(o, small, 1, "4k", "--beside", big + ",128,128k"))
        p99 = [median(r["lat_us"]["p99"] for r in rs) for rs in (quiet, noisy)]
        big_alone = median(r["iops"] for r in alone)
        big_beside = median(r["beside_iops"] for r in noisy)
        rows.append(("malloc 4k QD1, alone", "p99 %.1f us" % p99[0],
                     "%.0fk IOPS" % (median(r["iops"] for r in quiet) / 1e3)))
        rows.append(("the same beside 128k QD128", "p99 %.1f us" % p99[1],
                     "%.1fx; %.0fk IOPS" % (p99[1] / p99[0],
                                            median(r["iops"] for r in noisy) / 1e3)))
        rows.append(("malloc 128k QD128, alone", "%.1fk IOPS" % (big_alone / 1e3), ""))
        rows.append(("the same beside 4k QD1", "%.1fk IOPS" % (big_beside / 1e3),
                     "%.2fx" % (big_beside / big_alone)))


MODES = (("polling", ()), ("--poll-us 50", ("--poll-us", "50")),
         ("--interrupt-mode", ("--interrupt-mode",)))


def sleep(o, rows):
    """By turns: the machine may be faster in one minute than in the next."""
    shares, iops = {}, {}
    for n in range(o.rounds):
        for name, args in MODES:
            with Target(o, *args) as t:
                path = t.disk("n")
                fes = attach(t, o.few)
                if n == 0:
                    time.sleep(0.2)
                    before, began = t.proc.cpu_seconds(), time.monotonic()
                    time.sleep(2)
                    shares[name] = (t.proc.cpu_seconds() - before) / (time.monotonic() - began)
                iops.setdefault(name, []).append(bench(o, path, 1)["iops"])
                for fe in fes:
                    fe.destroy()
    base = median(iops["polling"])
    for name, _ in MODES:
        rows.append(("%s: idle with %d disks, then null QD1" % (name, o.few),
                     "%.1f %% CPU" % (shares[name] * 100),
                     "%.2fM IOPS, %.2fx" % (median(iops[name]) / 1e6, median(iops[name]) / base)))


def start_once(o):
    """-> milliseconds to the first answer, VmRSS, of it files, in KiB."""
    import socket
    d = tempfile.mkdtemp(prefix="spm", dir="/tmp")
    path = os.path.join(d, "rpc.sock")
    began = time.perf_counter()
    with subprocess.Popen([o.binary, "-S", d, "-r", path], stderr=subprocess.DEVNULL) as p:
        try:
            while True:
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.connect(path)
                    break
                except OSError:
                    sock.close()
                    if time.perf_counter() - began > 5:
                        raise Missing("the target does not start")
                    time.sleep(0.0001)
            sock.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version"}')
            sock.recv(4096)
            took = (time.perf_counter() - began) * 1000
            found = {}
            with open("/proc/%d/status" % p.pid) as f:
                for line in f:
                    key, _, rest = line.partition(":")
                    if rest.strip().endswith("kB"):
                        found[key] = int(rest.split()[0])
            sock.close()
        finally:
            p.terminate()
    shutil.rmtree(d, ignore_errors=True)
    return took, found["VmRSS"], found["RssFile"]


def start(o, rows):
    samples = [start_once(o) for _ in range(11)]
    rows.append(("exec to the first RPC answer", "%.1f ms" % median(s[0] for s in samples),
                 "%.1f to %.1f" % (min(s[0] for s in samples), max(s[0] for s in samples))))
    rows.append(("resident memory then", "%.1f MiB" % (median(s[1] for s in samples) / 1024),
                 "%.1f of it files" % (median(s[2] for s in samples) / 1024)))


PARTS = {"idle": idle_and_memory, "create": create, "fair": fair, "sleep": sleep, "start": start}


def options():
    p = argparse.ArgumentParser(description="What many disks cost.")
    p.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    p.add_argument("--disks", type=int, default=1000)
    p.add_argument("--few", type=int, default=100, help="idle disks of the part sleep")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--runtime", type=float, default=0.5, help="seconds a measurement")
    p.add_argument("--kinds", default="null", help="for create: null, malloc")
    p.add_argument("--dir", help="where state files go: a real disk (default: the build)")
    p.add_argument("--binary", help="the vhost to measure (default: the build's)")
    p.add_argument("--no-huge", action="store_true", help="fair: without huge pages")
    o = p.parse_args()
    o.build = os.path.join(REPO, os.environ.get("BUILD", "build"))
    o.bench = os.path.join(o.build, "test", "bench")
    o.binary = o.binary or os.path.join(o.build, "bin", "vhost")
    o.dir = o.dir or o.build
    return o


def main():
    import signal
    signal.signal(signal.SIGTERM, stop)
    o = options()
    for needed in (o.bench, o.binary):
        if not os.access(needed, os.X_OK):
            say("%s is missing: make, make build/test/bench" % needed)
            return 1
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for part in o.only.split(","):
        try:
            PARTS[part](o, rows)
        except (Missing, OSError) as e:
            say("skip: %s: %s" % (part, e))
    width = [max(len(r[i]) for r in rows) for i in range(2)] if rows else []
    for a, b, c in rows:
        say("%s  %s  %s" % (a.ljust(width[0]), b.rjust(width[1]), c))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
