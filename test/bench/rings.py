#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""`python3 test/bench/rings.py`: what the kind of ring and the in-flight region cost, on null.

Split and packed rings, with indirect tables as Linux's driver uses them and with three direct
descriptors a request, with the in-flight region and without; descriptors are written anew for each
request, as every driver does. Many short samples, all kinds in turn, so that each is compared with
one taken within the same second: on machines whose cores' distance changes by the minute that is
what makes 3 % visible. --binary names another vhost to measure beside this one, for a before and
after. The target has core 0 and the load generator core 1. Nothing here passes or fails.
"""
import argparse
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from many import REPO, Target                                       # noqa: E402
from report import Missing, kilo, say, table                        # noqa: E402
from run import run_json                                            # noqa: E402

KINDS = [(ring, tables, region) for tables in ("indirect", "direct") for ring in ("split", "packed")
         for region in (True, False)]


def args_of(ring, tables, region):
    return (["--rewrite"] + ["--packed"] * (ring == "packed") +
            ["--indirect"] * (tables == "indirect") + ["--no-inflight"] * (not region))


def options():
    p = argparse.ArgumentParser(description="Compare kinds of rings on a null disk.")
    p.add_argument("--samples", type=int, default=25, help="of each kind")
    p.add_argument("--runtime", type=float, default=0.1, help="seconds a sample")
    p.add_argument("--qd", type=int, default=32)
    p.add_argument("--binary", action="append", default=[], help="another vhost, beside ours")
    o = p.parse_args()
    build = os.path.join(REPO, os.environ.get("BUILD", "build"))
    o.bench = os.path.join(build, "test", "bench")
    o.binaries = [os.path.join(build, "bin", "vhost")] + o.binary
    return o


def start(o, binary):
    """One that sleeps while another is measured."""
    o.binary = binary
    t = Target(o, "--poll-us", "50", "--disable-cpumask-locks")
    t.rpc("bdev_null_create", name="n", num_blocks=1 << 20, block_size=4096)
    t.rpc("vhost_create_blk_controller", ctrlr="c", dev_name="n", packed_ring=True)
    return t


def sample(o, t, kind):
    return run_json([o.bench, "--socket", os.path.join(t.dir, "c"), "--qd", str(o.qd), "--runtime",
                     str(o.runtime), "--cpu", "1", "--json"] + args_of(*kind), 30)["iops"]


def ratio(over, under):
    return "%.3fx" % statistics.median(a / b for a, b in zip(over, under))


def report(o, got):
    rows = [("ring", "descriptors", "region", "IOPS (median)", "min", "max", "with/without region",
             "packed/split") + ("over the first vhost",) * (len(o.binaries) > 1)]
    for (n, ring, tables, region), iops in got.items():
        rows.append((ring, tables, "yes" if region else "no", kilo(statistics.median(iops)),
                     kilo(min(iops)), kilo(max(iops)),
                     ratio(iops, got[n, ring, tables, False]) if region else "",
                     ratio(iops, got[n, "split", tables, region]) if ring == "packed" else "") +
                    ((ratio(iops, got[0, ring, tables, region]) if n else "",)
                     if len(o.binaries) > 1 else ()))
    return table(rows, 3)


def main():
    o = options()
    targets, got = [], {(n,) + k: [] for n in range(len(o.binaries)) for k in KINDS}
    try:
        for binary in o.binaries:
            targets.append(start(o, binary))
        for _ in range(o.samples):
            for kind in KINDS:
                for n, t in enumerate(targets):
                    got[(n,) + kind].append(sample(o, t, kind))
    except Missing as e:
        say("rings.py: %s" % e)
        return 1
    finally:
        for t in targets:
            t.end()
    say("null randread 4k QD%d, %d samples of %g s; ratios are medians of samples taken in turn" %
        (o.qd, o.samples, o.runtime))
    say(report(o, got))
    return 0


if __name__ == "__main__":
    sys.exit(main())
