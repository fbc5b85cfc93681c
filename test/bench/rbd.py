#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images of a Ceph cluster: the target beside fio's rbd engine and qemu-storage-daemon's.

    BUILD=build /usr/bin/python3 test/bench/rbd.py [--connections 1,2,4] [--json FILE]

One run starts a cluster of one monitor and one OSD in memory, makes and fills an image, and
measures every case once a round with every contender, one after the other, so that a slow minute
hits all of them. The cluster has core 0 to itself; whoever uses the image, threads of librbd and
load generator included, is on core 1. All sleep when they have nothing to do, the load generator
too: one that polls would starve a target on its core. librbd's cache is off for all, and the
image has no exclusive lock, which contenders would have to pass around.

--quiet SHARE measures again, at most TRIES times, while other users of the machine take more than
that share of a core, and drops what stays loud: chosen by their CPU time, never by a result.

"ours-inline" makes librbd start requests on the reactor itself instead of handing them to a
thread of its own. librados then must not limit what is in flight, or a stalled cluster would block
the reactor: docs/ceph.md, "Tuning".

--connections measures four other images at once, through the target alone, with
--rbd-connections at each of these values; with --spread its threads may use all cores.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(REPO, "test", "bench"), os.path.join(REPO, "test", "ceph")]

from report import (Missing, Results, children_seconds, kilo, machine, machine_lines, markdown,
                    micro, say, table, times, write, write_json)        # noqa: E402
from run import Case, Process, Rpc, run_json, stop                      # noqa: E402
from ceph import POOL, Cluster                                          # noqa: E402

USER = "spindle"
MANY = 4
TRIES = 8
INLINE = {"rbd_non_blocking_aio": "false", "objecter_inflight_ops": "0",
          "objecter_inflight_op_bytes": "0"}


def bench_argv(o, case, path):
    return ["taskset", "-c", str(o.client_cpu), o.bench, "--socket", path, "--qd", str(case.qd),
            "--bs", case.bs, "--rw", case.rw, "--runtime", str(o.runtime), "--json",
            "--wait"] + o.client_args


def cost(result, seconds):
    """Adds the CPU time an I/O took on the user's side: contender and load generator."""
    result["cpu_us"] = seconds * 1e6 / max(result["iops"] * result.get("seconds", 1), 1)
    return result


class Server:
    """A vhost-user-blk socket of whoever; self.proc and self.disks are the subclass's."""

    def measure(self, o, case):
        before = self.proc.cpu_seconds() + children_seconds()
        result = run_json(bench_argv(o, case, self.disks[0]), o.runtime + 30)
        return cost(result, self.proc.cpu_seconds() + children_seconds() - before)

    def measure_all(self, o, case):
        """All its disks at once: the sum."""
        load = [subprocess.Popen(bench_argv(o, case, d), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE) for d in self.disks]
        before = self.proc.cpu_seconds()
        try:
            texts = [p.communicate(timeout=o.runtime + 30)[0] for p in load]
        finally:
            for p in load:
                if p.poll() is None:
                    p.kill()
                    p.wait()
        if any(p.returncode for p in load):
            raise Missing("a load generator failed")
        parts = [json.loads(t) for t in texts]
        lat = {k: statistics.mean(r["lat_us"][k] for r in parts) for k in ("p50", "p99")}
        return cost({"iops": sum(r["iops"] for r in parts), "seconds": o.runtime, "lat_us": lat},
                    self.proc.cpu_seconds() - before)

    def end(self):
        self.proc.end()


class Target(Server):
    """Our vhost, asleep when idle, with a disk for each image."""

    def __init__(self, o, tmp, cluster, images, args, name, cpu, config=None):
        binary = os.path.join(o.build, "bin", "vhost")
        if not os.access(binary, os.X_OK):
            raise Missing("%s is missing: run make first" % binary)
        self.dir = tempfile.mkdtemp(prefix=name, dir=tmp)
        rpc = os.path.join(self.dir, "rpc.sock")
        mask = hex(1 << o.client_cpu)
        self.proc = Process([binary, "-S", self.dir, "-r", rpc, "-m", mask, "--no-huge",
                             "--disable-cpumask-locks"] + args + o.target_args,
                            os.path.join(self.dir, "log"), cpu)
        try:
            self.proc.wait_for(rpc, "the target")
            self.rpc = self.connect(rpc)
            self.disks = []
            more = {"config": config} if config else {}
            for image in images:
                bdev = self.rpc("bdev_rbd_create", pool_name=POOL, rbd_name=image,
                                block_size=512, user_id=USER, config_file=cluster.conf,
                                key_file=cluster.keyring(USER), cache="none", **more)
                self.rpc("vhost_create_blk_controller", ctrlr=image, dev_name=bdev, cpumask=mask)
                self.disks.append(os.path.join(self.dir, image))
        except BaseException:
            self.proc.end()
            raise

    def connect(self, path):
        for _ in range(500):
            try:
                return Rpc(path)
            except OSError:
                time.sleep(0.01)
        raise Missing("the target's RPC socket does not answer: %s" % self.proc.tail())


class Qsd(Server):
    """qemu-storage-daemon's rbd block driver, exported by vhost-user."""

    def __init__(self, o, tmp, cluster, image):
        binary = shutil.which("qemu-storage-daemon")
        if not binary:
            raise Missing("qemu-storage-daemon is not installed: scripts/pkgdep.sh test")
        self.disks = [os.path.join(tmp, "qsd.sock")]
        # QEMU turns librbd's cache off for cache.direct=on.
        self.proc = Process(
            [binary, "--blockdev", "driver=rbd,node-name=d,pool=%s,image=%s,conf=%s,user=%s,"
             "cache.direct=on" % (POOL, image, cluster.conf, USER),
             "--export", "vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=%s,"
             "writable=on" % self.disks[0]], os.path.join(tmp, "qsd.log"), o.client_cpu)
        try:
            self.proc.wait_for(self.disks[0], "qemu-storage-daemon (rbd: qemu-block-extra)")
        except BaseException:
            self.proc.end()
            raise


class Fio:
    """fio's own rbd engine, a process for each measurement."""

    def __init__(self, cluster, image):
        if not shutil.which("fio"):
            raise Missing("fio is not installed")
        if subprocess.run(["fio", "--enghelp=rbd"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode:
            raise Missing("this fio has no rbd engine")
        self.image = image
        # The engine knows no option for it.
        os.environ["CEPH_CONF"] = cluster.conf

    def measure(self, o, case):
        before = children_seconds()
        # All of it: the engine's threads start before fio's --cpus_allowed counts.
        out = run_json(
            ["taskset", "-c", str(o.client_cpu), "fio", "--name=f", "--ioengine=rbd",
             "--pool=" + POOL, "--rbdname=" + self.image, "--clientname=" + USER,
             "--busy_poll=0", "--rw=" + case.rw, "--bs=" + case.bs, "--iodepth=%d" % case.qd,
             "--norandommap", "--randrepeat=0", "--time_based",
             "--runtime=%dms" % int(o.runtime * 1000), "--thread", "--output-format=json"],
            o.runtime + 60)
        side = out["jobs"][0]["write" if "write" in case.rw else "read"]
        pct = side["clat_ns"].get("percentile", {})
        return cost({"iops": side["iops"], "seconds": side["runtime"] / 1000,
                     "lat_us": {"p50": pct.get("50.000000", 0) / 1000,
                                "p99": pct.get("99.000000", 0) / 1000}},
                    children_seconds() - before)

    def end(self):
        os.environ.pop("CEPH_CONF", None)


def start_cluster(o):
    """On its core from birth: its daemons inherit it."""
    reason = Cluster.available()
    if reason:
        raise Missing(reason)
    cluster = Cluster(o.store, o.auth, "rbd_cache = false")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {o.cluster_cpu})
    try:
        cluster.start()
    except BaseException:
        cluster.destroy()
        raise
    finally:
        os.sched_setaffinity(0, before)
    return cluster


def make_image(cluster, name, mib):
    """Filled, so that no read finds a hole."""
    image = "%s/%s" % (POOL, name)
    cluster.rbd("create", "--size", "%dM" % mib, "--image-feature", "layering", image)
    cluster.rbd("bench", "--io-type", "write", "--io-size", "4M", "--io-threads", "4",
                "--io-total", "%dM" % mib, "--io-pattern", "seq", image, timeout=120)


def contenders(o, tmp, cluster):
    makers = {
        "ours": lambda: Target(o, tmp, cluster, ["disk"], ["--interrupt-mode"], "a",
                               o.client_cpu),
        "ours-inline": lambda: Target(o, tmp, cluster, ["disk"], ["--interrupt-mode"], "i",
                                      o.client_cpu, INLINE),
        "ours-poll": lambda: Target(o, tmp, cluster, ["disk"], ["--poll-us", str(o.poll_us)],
                                    "b", o.client_cpu),
        "fio": lambda: Fio(cluster, "disk"),
        "qsd": lambda: Qsd(o, tmp, cluster, "disk")}
    made = {}
    for name in o.who:
        try:
            made[name] = makers[name]()
        except (Missing, OSError) as e:
            say("skip: %s: %s" % (name, e))
    return made


def busy_seconds():
    """Of all cores: everything but idle and iowait."""
    with open("/proc/stat") as f:
        t = [int(x) for x in f.readline().split()[1:8]]
    return (sum(t) - t[3] - t[4]) / os.sysconf("SC_CLK_TCK")


def own_seconds(cluster, made):
    pids = [one.proc.p.pid for one in made.values() if hasattr(one, "proc")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as f:
                if cluster.dir.encode() in f.read():
                    pids.append(int(pid))
        except OSError:
            pass
    total = time.process_time() + children_seconds()
    for pid in set(pids):
        try:
            with open("/proc/%d/stat" % pid) as f:
                fields = f.read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


def take_quiet(o, cluster, made, case, who, results):
    """One sample, of a time when nobody else used the machine."""
    if not o.quiet:
        results.take(case, who, lambda: made[who].measure(o, case))
        return
    for _ in range(TRIES):
        busy, own, start = busy_seconds(), own_seconds(cluster, made), time.monotonic()
        results.take(case, who, lambda: made[who].measure(o, case))
        others = busy_seconds() - busy - (own_seconds(cluster, made) - own)
        if others / (time.monotonic() - start) <= o.quiet or (case.name, who) in results.failed:
            return
        results.samples[case.name, who].pop()
        o.loud += 1


def run_peers(o, tmp, cluster, cases, results):
    make_image(cluster, "disk", o.image_mib)
    made = contenders(o, tmp, cluster)
    try:
        for n in range(o.rounds):
            results.round = n
            say("round %d of %d" % (n + 1, o.rounds))
            for case in cases:
                # Turn and turn about: nobody is always the first after a pause.
                order = list(made)[n % len(made):] + list(made)[:n % len(made)] if made else []
                for who in order:
                    take_quiet(o, cluster, made, case, who, results)
    finally:
        for one in made.values():
            one.end()


def run_connections(o, tmp, cluster, cases, results):
    images = ["many%d" % i for i in range(MANY)]
    for image in images:
        make_image(cluster, image, o.image_mib // MANY)
    for n in range(o.rounds):
        results.round = n
        say("connections, round %d of %d" % (n + 1, o.rounds))
        for count in o.connections:
            target = Target(o, tmp, cluster, images,
                            ["--interrupt-mode", "--rbd-connections", str(count)], "c",
                            None if o.spread else o.client_cpu)
            try:
                for case in cases:
                    results.take(case, "%d conn" % count, lambda: target.measure_all(o, case))
            finally:
                target.end()


def summary(results, case, who):
    s = results.summary(case, who)
    if s:
        s["cpu_us"] = statistics.median(g["cpu_us"] for g in results.samples[case.name, who])
    return s


def rows(cases, names, results, base, word):
    """base: whose IOPS the last column compares with; word: its head."""
    out = [("case", "who", "IOPS", "min", "max", "p50 us", "p99 us", "CPU us/IO", word)]
    for case in cases:
        for who in names:
            s = summary(results, case, who)
            if not s:
                continue
            over = results.ratio(case, who, base)
            out.append((case.name, who, kilo(s["iops"]), kilo(s["min"]), kilo(s["max"]),
                        micro(s["lat_us"]["p50"]), micro(s["lat_us"]["p99"]),
                        "%.1f" % s["cpu_us"], times(over["median"] if over else None)))
    return out


def options():
    p = argparse.ArgumentParser(description="Benchmark RBD disks beside their peers.")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runtime", type=float, default=3.0, help="seconds a measurement")
    p.add_argument("--only", default="", help="cases whose name contains this")
    p.add_argument("--who", default="ours,ours-poll,fio,qsd", help="which contenders")
    p.add_argument("--connections", default="", metavar="N,N",
                   help="measure %d images at once with so many connections" % MANY)
    p.add_argument("--spread", action="store_true",
                   help="with --connections: leave the target's other threads unpinned")
    p.add_argument("--no-peers", action="store_true", help="only --connections")
    p.add_argument("--poll-us", type=int, default=20, help="for ours-poll")
    p.add_argument("--json", metavar="FILE", help="write everything measured there")
    p.add_argument("--markdown", metavar="FILE", help="tables for docs/performance.md; -: print")
    p.add_argument("--image-mib", type=int, default=1024)
    p.add_argument("--store", default="memstore", choices=("memstore", "bluestore"))
    p.add_argument("--auth", default="cephx", choices=("cephx", "none"))
    p.add_argument("--cluster-cpu", type=int, default=0)
    p.add_argument("--client-cpu", type=int, default=1)
    p.add_argument("--quiet", type=float, default=0, metavar="SHARE",
                   help="only samples while others used less of a core (0: take all)")
    p.add_argument("--target-args", default="", help="more arguments for the target")
    p.add_argument("--client-args", default="--event-idx", help="more for the load generator")
    o = p.parse_args()
    o.loud = 0
    o.build = os.path.join(REPO, os.environ.get("BUILD", "build"))
    o.bench = os.path.join(o.build, "test", "bench")
    o.target_args, o.client_args = o.target_args.split(), o.client_args.split()
    o.who = o.who.split(",")
    o.connections = [int(n) for n in o.connections.split(",") if n]
    return o


def tables(o, cases, many, results):
    names = [w for w in o.who if not o.no_peers]
    out = [rows(cases, names, results, base, "of " + base)
           for base in [w for w in ("fio", "qsd") if w in names] or names[:1]]
    pools = ["%d conn" % n for n in o.connections]
    if pools:
        say("%d images at once, target %s" % (MANY, "unpinned" if o.spread else "pinned"))
        out.append(rows(many, pools, results, pools[0], "of first"))
    return names + pools, out


def report(o, cases, many, results):
    say("")
    names, found = tables(o, cases, many, results)
    for t in found:
        say(table(t) + "\n")
    say("medians of %d rounds of %g s, and of the rounds' ratios; %s, %s; CPU: of core %d, "
        "contender and load (of the target only with several images);\nfio's CPU includes its start"
        % (o.rounds, o.runtime, o.store, o.auth, o.client_cpu))
    if o.quiet:
        say("%d samples were dropped as others used more than %g of a core" % (o.loud, o.quiet))
        say("kept: " + ", ".join("%s %s %d" % (c.name, w, len(results.samples.get((c.name, w), [])))
                                 for c in cases for w in names))
    if o.markdown:
        write(o.markdown, "\n".join(machine_lines(o.machine)) + "\n\n" +
              "\n\n".join(markdown(t) for t in found))
    if o.json:
        write_json(o.json, {"machine": o.machine, "cases": {
            c.name: {w: s for w in names for s in [summary(results, c, w)] if s}
            for c in cases + many}})


def main():
    signal.signal(signal.SIGTERM, stop)
    o = options()
    if not os.access(o.bench, os.X_OK):
        say("%s is missing: run make %s" % (o.bench, os.path.relpath(o.bench, REPO)))
        return 1
    if max(o.cluster_cpu, o.client_cpu) >= os.cpu_count():
        say("note: too few cores; the cluster and its users share one")
        o.cluster_cpu = o.client_cpu = 0
    if os.getloadavg()[0] > 1:
        say("note: others use this machine (load %.1f): mind the lowest and highest"
            % os.getloadavg()[0])
    o.machine = machine(REPO)
    for line in machine_lines(o.machine):
        say(line)
    cases = [Case("rbd", rw, "4k", qd) for rw in ("randread", "randwrite") for qd in (1, 32)]
    cases = [c for c in cases if o.only in c.name]
    many = [Case("%d x rbd" % MANY, rw, "4k", 32) for rw in ("randread", "randwrite")]
    results = Results()
    tmp = tempfile.mkdtemp(prefix="spr", dir="/tmp")
    cluster = None
    try:
        cluster = start_cluster(o)
        if not o.no_peers:
            run_peers(o, tmp, cluster, cases, results)
        if o.connections:
            run_connections(o, tmp, cluster, many, results)
    except Missing as e:
        say("skip: %s" % e)
    except SystemExit:
        say("ended early: what there is so far")
    finally:
        if cluster:
            cluster.destroy()
        shutil.rmtree(tmp, ignore_errors=True)
    report(o, cases, many, results)
    return 0 if results.samples else 1


if __name__ == "__main__":
    sys.exit(main())
