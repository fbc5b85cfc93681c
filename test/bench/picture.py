# SPDX-License-Identifier: BSD-3-Clause
"""run.py's data as an SVG: a panel for each kind of disk, a group of bars for each workload, each
bar with its value in words and a line from the lowest to the highest round."""
from xml.sax.saxutils import escape

from verdict import NAMES, bytes_of, is_large, kilo, machine_lines

WIDTH, LEFT, RIGHT = 900, 195, 215
BAR, GAP, GROUP = 16, 3, 12
COLOURS = {"ours": "#1d6fb8", "qsd": "#e8963a", "fio": "#a3adb8", "fio busy": "#c9d0d8",
           "memcpy": "#a3adb8", "1 reactor": "#8fbbe0", "2 reactors": "#1d6fb8"}
INK, FAINT, GROUND = "#1f2933", "#5f6c7b", "#ffffff"
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"


def iops(case, value):
    return value


def kilo_iops(value):
    return kilo(value) + " IOPS"


def gigabytes(case, value):
    return value * bytes_of(case) / 1e9


def gigabytes_text(value):
    return "%.*f GB/s" % (1 if value >= 10 else 2, value)


def small(kind):
    return lambda c: c["kind"] == kind and not is_large(c) and "2 queues" not in c["name"]


# title, which cases, what is drawn, how it is said
PANELS = (
    ("null disk, 4 KiB: what the target itself costs", small("null"), iops, kilo_iops),
    ("malloc disk, 4 KiB: limit is a plain memcpy", small("malloc"), iops, kilo_iops),
    ("file on this machine's disk, 4 KiB: limit is fio's io_uring on the same file",
     small("file"), iops, kilo_iops),
    ("file in the page cache, 4 KiB: what each costs without a disk", small("cached"), iops,
     kilo_iops),
    ("128 KiB, sequential", is_large, gigabytes, gigabytes_text),
)


class Svg:
    def __init__(self):
        self.parts, self.y = [], 0

    def rect(self, x, y, w, h, fill):
        self.parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>' %
                          (x, y, w, h, fill))

    def line(self, x1, y1, x2, y2, colour=INK):
        self.parts.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" '
                          'stroke-width="1"/>' % (x1, y1, x2, y2, colour))

    def text(self, x, y, text, size=12, colour=INK, anchor="start", weight="normal"):
        self.parts.append('<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s" '
                          'font-weight="%s">%s</text>' %
                          (x, y, size, colour, anchor, weight, escape(text)))

    def done(self):
        return ('<?xml version="1.0" encoding="UTF-8"?>\n'
                '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
                'viewBox="0 0 %d %d" font-family="%s">\n'
                '<rect width="100%%" height="100%%" fill="%s"/>\n%s\n</svg>\n' %
                (WIDTH, self.y, WIDTH, self.y, FONT, GROUND, "\n".join(self.parts)))


def label(case):
    return " ".join(p for p in (case["rw"], "QD%d" % case["qd"], case["word"]) if p)


def bar(svg, who, value, low, high, scale, words):
    """One bar at svg.y; scale: pixels for each of value."""
    mid = svg.y + BAR / 2
    svg.rect(LEFT, svg.y, max(value * scale, 1), BAR, COLOURS[who])
    if high > low:
        svg.line(LEFT + low * scale, mid, LEFT + high * scale, mid)
        for x in (low, high):
            svg.line(LEFT + x * scale, mid - 3, LEFT + x * scale, mid + 3)
    svg.text(LEFT + max(value, high) * scale + 6, mid + 4, words, 11)
    svg.y += BAR + GAP


def group(svg, name, bars, scale, words):
    height = len(bars) * (BAR + GAP) - GAP
    svg.text(LEFT - 8, svg.y + height / 2 + 4, name, 12, anchor="end")
    for who, value, low, high in bars:
        bar(svg, who, value, low, high, scale, words(who, value))
    svg.y += GROUP


def title(svg, text):
    svg.y += 14
    svg.text(16, svg.y, text, 14, weight="bold")
    svg.y += 12


def panel(svg, data, head, chosen, value, say):
    cases = [c for c in data["cases"] if chosen(c) and c["who"]]
    bars = {c["name"]: [(w, value(c, s["iops"]), value(c, s["min"]), value(c, s["max"]))
                        for w, s in c["who"].items()] for c in cases}
    top = max((b[3] for group_of in bars.values() for b in group_of), default=0)
    if not top:
        return
    title(svg, head)
    scale = (WIDTH - LEFT - RIGHT) / top
    kinds = len({c["kind"] for c in cases}) > 1
    for c in cases:
        group(svg, (c["kind"] + " " if kinds else "") + label(c), bars[c["name"]], scale,
              lambda who, v: say(v) + (", " + NAMES[who] if who != "ours" else ""))


def duo_panel(svg, data):
    cases = [c for c in data["cases"] if "scaling" in c["ours_over"]]
    if not cases:
        return
    title(svg, "two reactors on one disk, a queue each: what two whole cores would serve, "
          "one reactor = 1")
    scale = (WIDTH - LEFT - RIGHT) / max(2, max(c["ours_over"]["scaling"]["max"] for c in cases))
    for c in cases:
        x = c["ours_over"]["scaling"]
        group(svg, "%s %s QD%d" % (c["kind"], c["rw"], c["qd"]),
              [("1 reactor", 1, 1, 1), ("2 reactors", x["median"], x["min"], x["max"])], scale,
              lambda who, v: "%.2fx, %s" % (v, who))


def legend(svg):
    x = 16
    for who, text in (("ours", "ours"), ("qsd", "qemu-storage-daemon"),
                      ("fio", "limit without a virtqueue (memcpy, fio)")):
        svg.rect(x, svg.y - 10, 12, 12, COLOURS[who])
        svg.text(x + 17, svg.y, text)
        x += 45 + 7.2 * len(text)
    svg.line(x, svg.y - 4, x + 22, svg.y - 4)
    for end in (x, x + 22):
        svg.line(end, svg.y - 7, end, svg.y - 1)
    svg.text(x + 28, svg.y, "lowest to highest round")
    svg.y += 10


def draw(data):
    svg, s = Svg(), data["setup"]
    svg.y = 28
    svg.text(16, svg.y, "vhost-user-blk, one polling core: longer bars are better", 17,
             weight="bold")
    svg.y += 24
    legend(svg)
    for head, chosen, value, say in PANELS:
        panel(svg, data, head, chosen, value, say)
    duo_panel(svg, data)
    svg.y += 6
    trips = s["line_round_trip_ns"]
    foot = machine_lines(data["machine"]) + [
        "medians of %d rounds of %g s; target on core %d, load on core %d; in %d of %d samples "
        "others used over %.0f %% of a core" %
        (s["rounds"], s["runtime_s"], s["target_core"], s["client_core"], s["loud"],
         s["samples"], s["quiet"] * 100)] + (
        ["a cache line took %.0f to %.0f ns from core to core and back" % (min(trips), max(trips))]
        if trips else [])
    for line in foot:
        svg.text(16, svg.y, line, 10, FAINT)
        svg.y += 14
    svg.y += 4
    return svg.done()
