# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks print and write: samples, their medians, tables as text and Markdown, JSON,
the machine they ran on, and what else ran on it meanwhile.

A sample is what one measurement gave: {"iops", "lat_us": {"p50", ...}, "busy"?}. Ratios are medians
of the ratios of each round, as both sides of one ran seconds apart."""
import datetime
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import time

LATENCIES = ("p50", "p90", "p99", "p99.9", "p99.99", "max")


class Missing(Exception):
    """Something a measurement needs is not there."""


def say(text):
    print(text, flush=True)


def kilo(value):
    if value is None:
        return "-"
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            value /= limit
            break
    else:
        unit = ""
    return "%.*f%s" % (0 if value >= 100 else 1 if value >= 10 else 2, value, unit)


def micro(value):
    if not value:
        return "-"
    return "%.*f" % (0 if value >= 100 else 1, value)


def percent(share):
    return "-" if share is None else "%.0f %%" % (share * 100)


def times(value):
    return "-" if value is None else "%.2fx" % value


class Results:
    """Samples by case and contender; a contender that failed once in a case is out of it."""

    def __init__(self):
        self.samples, self.failed = {}, {}
        self.round = 0

    def take(self, case, who, measure):
        key = (case.name, who)
        if key in self.failed:
            return
        try:
            sample = measure()
            sample["round"] = self.round
            self.samples.setdefault(key, []).append(sample)
        except (Missing, OSError, KeyError, ValueError, subprocess.SubprocessError) as e:
            self.failed[key] = str(e)
            say("skip: %s, %s: %s" % (case.name, who, e))

    def good(self, case, who):
        return [] if (case.name, who) in self.failed else self.samples.get((case.name, who), [])

    def summary(self, case, who):
        got = self.good(case, who)
        if not got:
            return None
        iops = [g["iops"] for g in got]
        busy = [g["busy"] for g in got if g.get("busy")]
        core = [g["iops"] / g["busy"] for g in got if g.get("busy")]
        return {"iops": statistics.median(iops), "min": min(iops), "max": max(iops),
                "busy": statistics.median(busy) if busy else None,
                "iops_per_core": statistics.median(core) if core else None,
                "lat_us": {k: statistics.median(g["lat_us"].get(k, 0) for g in got)
                           for k in LATENCIES},
                "samples": iops}

    def ratio(self, case, who, other, value=lambda s: s["iops"]):
        """{"median", "min", "max"} of who's samples over other's of the same rounds, or None."""
        others = {s["round"]: value(s) for s in self.good(case, other)}
        got = [value(s) / others[s["round"]] for s in self.good(case, who)
               if others.get(s["round"])]
        return {"median": statistics.median(got), "min": min(got), "max": max(got)} if got else None


# ---- tables: rows of strings, the first one the head ----

def table(rows, left=2):
    """Lines of text; the first `left` columns are aligned to the left."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) if i < left else c.rjust(w)
                               for i, (c, w) in enumerate(zip(r, widths))).rstrip()
                     for r in rows)


def markdown(rows):
    lines = ["| " + " | ".join(r) + " |" for r in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


# ---- files ----

def write(path, text):
    if path == "-":
        say(text)
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as f:
        f.write(text if text.endswith("\n") else text + "\n")


def write_between(path, text, word):
    """Into a page that has the comments <!-- word --> and <!-- /word -->: what is between them.
    Any other file becomes the text."""
    page = None
    if path != "-" and os.path.exists(path):
        with open(path) as f:
            page = f.read()
    begin, end = "<!-- %s -->\n" % word, "<!-- /%s -->\n" % word
    if page and begin in page and end in page:
        text = page[:page.index(begin)] + begin + text + page[page.index(end):]
    write(path, text)


def write_json(path, data):
    write(path, json.dumps(data, indent=1))


# ---- the machine ----

def first_line(argv):
    if not shutil.which(argv[0]):
        return None
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=20, check=False)
    lines = p.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if p.returncode == 0 and lines else None


def info_of(path, key):
    try:
        with open(path) as f:
            found = re.search(r"^%s\s*:\s*(.*)$" % re.escape(key), f.read(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else None


def commit(repo):
    """Pages and pictures may differ from it: they are what comes out."""
    text = first_line(["git", "-C", repo, "describe", "--always"])
    changed = text and first_line(["git", "-C", repo, "status", "--porcelain", "-uno", "--", ".",
                                   ":!docs"])
    return (text or "unknown") + (", changed since" if changed else "")


def machine(repo):
    """What a reader has to know to compare."""
    memory = info_of("/proc/meminfo", "MemTotal") or "0 kB"
    family = [info_of("/proc/cpuinfo", k) for k in ("cpu family", "model")]
    return {"cpu": info_of("/proc/cpuinfo", "model name") or platform.machine(),
            "cpu_family_model": "/".join(f or "?" for f in family),
            "mhz": info_of("/proc/cpuinfo", "cpu MHz"),
            "cores": os.cpu_count(), "memory_gib": round(int(memory.split()[0]) / (1 << 20), 1),
            "virtual": " hypervisor " in " %s " % (info_of("/proc/cpuinfo", "flags") or ""),
            "kernel": "%s %s" % (platform.system(), platform.release()),
            "system": (info_of_release("PRETTY_NAME") or "unknown"),
            "huge_pages": "%s of %s free" % (info_of("/proc/meminfo", "HugePages_Free"),
                                             info_of("/proc/meminfo", "HugePages_Total")),
            "qemu": first_line(["qemu-storage-daemon", "--version"]),
            "fio": first_line(["fio", "--version"]), "commit": commit(repo),
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M")}


def info_of_release(key):
    try:
        with open("/etc/os-release") as f:
            found = re.search(r'^%s="?([^"\n]*)' % key, f.read(), re.M)
    except OSError:
        found = None
    return found.group(1) if found else None


def machine_lines(m):
    return ["%d cores of %s (family/model %s, %s MHz)%s, %s GiB" %
            (m["cores"], m["cpu"], m["cpu_family_model"], m["mhz"],
             ", virtual" if m["virtual"] else "", m["memory_gib"]),
            "%s, %s, huge pages: %s" % (m["kernel"], m["system"], m["huge_pages"]),
            "commit %s, %s; %s; %s" % (m["commit"], m["date"], m["fio"] or "no fio",
                                       m["qemu"] or "no qemu-storage-daemon")]


# ---- who else ran ----

def process_seconds(pid):
    """CPU time of all threads of a process so far, to the nanosecond; 0 when it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | 2)    # what clock_getcpuclockid() makes of a pid
    except OSError:
        return 0.0


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_seconds():
    """Of all cores: user, nice, system and stolen time; not the time of interrupts."""
    with open("/proc/stat") as f:
        t = [int(x) for x in f.readline().split()[1:9]]
    return (t[0] + t[1] + t[2] + t[7]) / os.sysconf("SC_CLK_TCK")


class Others:
    """The share of a core that went to others than ourselves, our children and `pids`."""

    def __init__(self, pids):
        self.pids = list(pids)
        self.start()

    def own(self):
        return (time.process_time() + children_seconds() +
                sum(process_seconds(p) for p in self.pids))

    def start(self):
        self.at, self.all, self.mine = time.monotonic(), machine_seconds(), self.own()

    def share(self):
        wall = time.monotonic() - self.at
        used = machine_seconds() - self.all - (self.own() - self.mine)
        return max(0.0, used / wall) if wall > 0 else 0.0
