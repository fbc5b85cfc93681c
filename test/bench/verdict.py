# SPDX-License-Identifier: BSD-3-Clause
"""What run.py says about what it measured (the dict that --json writes): the table, the two
reactors, the goals and whether they are met, and the same as Markdown for docs/performance.md."""
import statistics

from report import kilo, machine_lines, markdown, micro, percent, table

# SPDK v26.05's vhost, measured by us with this load generator on a machine of this kind, on another
# day: constants for orientation, no contender of this run. IOPS, but bytes/s for 128k.
# Its reactor was 77 to 85 % busy at QD32 and QD128 of null: IOPS of a full core are the first two
# numbers of SPDK_CORE.
SPDK = {"null randread 4k QD1": 1.01e6, "null randread 4k QD32": 3.1e6,
        "null randread 4k QD128": 4.7e6, "malloc randread 4k QD1": 0.59e6,
        "malloc randread 4k QD32": 1.31e6, "malloc randwrite 4k QD32": 1.11e6,
        "malloc read 128k QD32": 9.2e9}
# Seconds that a cache line took between the cores and back when that was measured.
SPDK_TRIP = 305e-9
SPDK_CORE = {"null randread 4k QD32": 4.0e6, "null randread 4k QD128": 6.3e6}

NAMES = {"ours": "ours", "qsd": "qemu-storage-daemon", "fio": "fio io_uring",
         "fio busy": "fio, cores busy", "memcpy": "memcpy",
         "1 reactor": "1 reactor", "2 reactors": "2 reactors"}
ORDER = tuple(NAMES)


def bytes_of(case):
    return int(case["bs"].rstrip("k")) * (1024 if case["bs"].endswith("k") else 1)


def is_large(case):
    return bytes_of(case) >= 65536


# ---- goals ----

def goal(name, want, factor, measured, unit, detail=""):
    """measured: what is compared with factor * unit, or None; a unit of 1 is a ratio already."""
    ratio = measured / unit if measured else None
    return {"name": name, "goal": want, "measured": ratio, "detail": detail,
            "met": None if ratio is None else bool(factor is None or ratio >= factor),
            "factor": factor}


def goals(data):
    cases = {c["name"]: c for c in data["cases"]}
    out = []

    def ours(name, key):
        return cases.get(name, {}).get("who", {}).get("ours", {}).get(key)

    def over(name, who):
        got = cases.get(name, {}).get("ours_over", {}).get(who)
        return got["median"] if got else None

    for qd, factor in ((1, 1.2), (32, 1.5), (128, 1.5)):
        name = "null randread 4k QD%d" % qd
        core = SPDK_CORE.get(name)
        got, unit = ours(name, "iops_per_core" if core else "iops"), core or SPDK[name]
        out.append(goal(name + (", IOPS a busy core" if core else ", IOPS") + ", over SPDK's",
                        ">= %.1fx" % factor, factor, got, unit,
                        "%s over %s" % (kilo(got), kilo(unit))))
    for name, factor in (("malloc randread 4k QD32", 0.7), ("malloc read 128k QD32", 0.95)):
        out.append(goal(name + ", over memcpy", ">= %.2fx" % factor, factor,
                        over(name, "memcpy"), 1))
    for kind, word in (("file", ""), ("file", " sleeping"), ("cached", "")):
        for qd in (1, 32, 128):
            name = "%s randread 4k QD%d%s" % (kind, qd, word)
            out.append(goal(name + ", over fio io_uring", ">= 1.00x", 1.0, over(name, "fio"), 1))
        name = "%s randread 4k QD32%s" % (kind, word)
        out.append(goal(name + ", over qemu-storage-daemon", ">= 2.00x", 2.0, over(name, "qsd"), 1))
    for kind in ("null", "malloc"):
        name = "%s randread 4k QD1024 2 queues" % kind
        out.append(goal("two reactors on one %s disk, over one" % kind, ">= 1.80x", 1.8,
                        over(name, "scaling"), 1))
    for name in ("malloc randread 4k QD1", "malloc randread 4k QD32", "malloc randwrite 4k QD32",
                 "malloc read 128k QD32"):
        got = ours(name, "iops")
        large = "128k" in name
        got = got * 131072 if got and large else got
        out.append(goal(name + ", over SPDK's", "-", None, got, SPDK[name],
                        "%s over %s" % (kilo(got), kilo(SPDK[name])) if not large or not got else
                        "%.1f over %.1f GB/s" % (got / 1e9, SPDK[name] / 1e9)))
    trips = data["setup"]["line_round_trip_ns"]
    got = ours("null randread 4k QD1", "iops")
    if got and trips:
        got *= statistics.median(trips) * 1e-9
    out.append(goal("null randread 4k QD1, I/Os in a cache line's round trip, over SPDK's", "-",
                    None, got if trips else None, SPDK["null randread 4k QD1"] * SPDK_TRIP,
                    "%.2f over %.2f" % (got or 0, SPDK["null randread 4k QD1"] * SPDK_TRIP)))
    return out


def verdict(g):
    if g["measured"] is None:
        return "not measured"
    if g["factor"] is None:
        return "-"
    return "yes" if g["met"] else "NOT MET"


def goal_rows(data):
    return [("goal", "wanted", "measured", "met?", "")] + [
        (g["name"], g["goal"], "%.3fx" % g["measured"] if g["measured"] else "-", verdict(g),
         g["detail"] if g["measured"] is not None else "") for g in data["goals"]]


# ---- tables ----

def who_rows(data, cells):
    for case in data["cases"]:
        for who in ORDER:
            s = case["who"].get(who)
            if s:
                yield cells(case, who, s)


def over_text(case, who):
    got = case["ours_over"].get(who)
    return "%.2fx (%.2f-%.2f)" % (got["median"], got["min"], got["max"]) if got else ""


def rate(case, s):
    return "%.2f" % (s["iops"] * bytes_of(case) / 1e9)


def cells(case, who, s):
    lat = s["lat_us"]
    return (case["name"], NAMES[who], kilo(s["iops"]), kilo(s["min"]), kilo(s["max"]),
            rate(case, s), percent(s["busy"]), kilo(s["iops_per_core"]), micro(lat["p50"]),
            micro(lat["p90"]), micro(lat["p99"]), micro(lat["p99.9"]), micro(lat["p99.99"]),
            micro(lat["max"]), over_text(case, who))


HEAD = ("case", "who", "IOPS", "min", "max", "GB/s", "busy", "IOPS/core", "p50 us", "p90", "p99",
        "p99.9", "p99.99", "max", "ours/it (min-max)")


def heading(machine, o):
    return machine_lines(machine) + [
        "pinned: target (and fio, memcpy) on core %d, load on core %d; %d rounds of %g s a "
        "measurement" % (o.target_cpu, o.client_cpu, o.rounds, o.runtime)]


def notes(data):
    s = data["setup"]
    lines = ["Medians of %d rounds of %g s each, %d s in all; ours/it: median of the rounds' "
             "ratios." % (s["rounds"], s["runtime_s"], s["seconds"]),
             "Target, fio and memcpy pinned to core %d, load generator to core %d." %
             (s["target_core"], s["client_core"]),
             "busy: share of a core that the target worked while the load ran; IOPS/core: IOPS "
             "over busy."]
    if s["line_round_trip_ns"]:
        lines.append("A cache line took %.0f ns (%.0f-%.0f by round) from the client's core to the "
                     "target's and back." % (statistics.median(s["line_round_trip_ns"]),
                                             min(s["line_round_trip_ns"]),
                                             max(s["line_round_trip_ns"])))
    lines += still_lines(s)
    if s["loud"]:
        lines.append("In %d of %d samples others used more than %.0f %% of a core, also when "
                     "measured again." % (s["loud"], s["samples"], s["quiet"] * 100))
    else:
        lines.append("In none of %d samples did others use more than %.0f %% of a core." %
                     (s["samples"], s["quiet"] * 100))
    return lines + ["Note: %s." % n for n in s["notes"]]


def still_lines(setup):
    """Whether the cores were there while both were busy."""
    beside, idle = setup.get("still"), setup.get("still_idle")
    if not beside or not idle:
        return []
    return ["Of two loops, a core each and no I/O, one stood still for %.1f %% of the time; with "
            "fio on the disk beside them the one on the other core for %.1f %% (%.1f-%.1f), up to "
            "%.0f ms at a stretch." %
            (100 * statistics.median(g["lost"] for g in idle),
             100 * statistics.median(g["lost"] for g in beside),
             100 * min(g["lost"] for g in beside), 100 * max(g["lost"] for g in beside),
             max(g["longest_ms"] for g in beside))]


def duo_explained(data):
    """On two cores the client shares one of them."""
    s = data["setup"]
    lines = ["Two reactors on one disk, a queue each (cores %d and %d), beside one reactor with "
             "both queues (core %d)." % (s["target_core"], s["second_reactor_core"],
                                         s["target_core"])]
    if s["second_reactor_core"] == s["client_core"]:
        lines += ["The client needs some of the second reactor's core, so raw IOPS cannot double. "
                  "What counts",
                  "is requests served per second of CPU time in busy passes, of both reactors "
                  "together; twice",
                  "that over the single reactor's is what two whole cores would give."]
    return lines


def duo_lines(data):
    lines = []
    for c in data["cases"]:
        if "scaling" not in c["ours_over"]:
            continue
        one, two, x = c["who"]["1 reactor"], c["who"]["2 reactors"], c["ours_over"]["scaling"]
        lines.append("%s: %s IOPS on %.2f busy cores, %s on %.2f: %.2fx (%.2f-%.2f)" %
                     (c["kind"], kilo(one["iops"]), one["busy"], kilo(two["iops"]), two["busy"],
                      x["median"], x["min"], x["max"]))
    return lines


def text(data):
    parts = [table([HEAD] + list(who_rows(data, cells))), "\n".join(notes(data))]
    if duo_lines(data):
        parts.append("\n".join(duo_explained(data) + duo_lines(data)))
    parts += ["failed: %s: %s" % f for f in data["failed"].items()]
    if data["goals"]:
        parts.append("goal / measured / met?\n" + table(goal_rows(data), 1))
    return "\n\n".join(parts)


def short_cells(case, who, s):
    lat = s["lat_us"]
    return (case["name"] if who in ("ours", "1 reactor") else "", NAMES[who], kilo(s["iops"]),
            kilo(s["min"]), kilo(s["max"]), percent(s["busy"]), kilo(s["iops_per_core"]),
            micro(lat["p50"]), micro(lat["p99"]), micro(lat["p99.9"]), micro(lat["p99.99"]),
            over_text(case, who))


def markdown_page(data):
    head = ("case", "who", "IOPS (median)", "min", "max", "busy", "IOPS a busy core", "p50 µs",
            "p99 µs", "p99.9 µs", "p99.99 µs", "ours/it (min-max)")
    parts = ["\n".join("- " + t for t in machine_lines(data["machine"]) + notes(data)),
             markdown([head] + list(who_rows(data, short_cells)))]
    if duo_lines(data):
        parts += ["\n".join(duo_explained(data)),
                  "\n".join("- " + t for t in duo_lines(data))]
    if data["goals"]:
        parts.append(markdown(goal_rows(data)))
    return "\n\n".join(parts) + "\n"
