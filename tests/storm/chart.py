"""The chart of one storm: how many images were done, and below, when what struck. Readable on light and dark pages."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

# Rows of the chart: what they are called, and which kinds of faults they show.
GROUPS = {
    "kill -9": ("kill the child of a worker", "kill a worker", "kill the web server", "kill the scheduler"),
    "stopped beyond a lease": ("stop a child beyond its lease",),
    "Redis wiped, killed, refusing": ("wipe Redis", "kill Redis", "Redis refuses"),
    "Postgres crashed": ("crash Postgres",),
    "store killed, hanging": ("kill the object store", "the object store hangs"),
    "workers cut off": ("cut a host off",),
    "disk full": ("fill the disk",),
    "supervisor killed": ("kill the supervisor",),
    "power cut": ("cut the power",),
}
WIDTH, LEFT, RIGHT, TOP = 860, 232, 36, 34
CURVE, ROW = 170, 22  # heights
SPAN = WIDTH - LEFT - RIGHT
STYLE = """
text{font:13px system-ui,sans-serif;fill:#1c2024}
.card{fill:#fff}
.quiet{fill:#565e66}
.axis{stroke:#dfe2e5;fill:none}
.done{stroke:#2e7d4f;stroke-width:2;fill:none}
.fault{stroke:#b3372f;stroke-width:1.5;fill:none}
@media(prefers-color-scheme:dark){
text{fill:#e7e9eb}.card{fill:#1b1f23}.quiet{fill:#a9b1b9}.axis{stroke:#333a41}.done{stroke:#4fae78}.fault{stroke:#ec7a70}}
"""


def counts(faults: Mapping[str, int]) -> dict[str, int]:
    """How many faults each row shows. Kinds that no row names have rows of their own."""
    named = {kind for kinds in GROUPS.values() for kind in kinds}
    grouped = {name: sum(faults.get(kind, 0) for kind in kinds) for name, kinds in GROUPS.items()}
    return {name: n for name, n in grouped.items() if n} | {k: n for k, n in faults.items() if k not in named}


def draw(report: Mapping[str, Any]) -> str:
    """An SVG document."""
    rows = counts(report["faults"])
    images, last = max(report["images"], 1), max(report["seconds"], 1)
    bottom = TOP + CURVE
    height = bottom + ROW * len(rows) + 44
    title = f"{images:,} images and {sum(report['faults'].values()):,} faults in {last / 60:.0f} minutes"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{STYLE}</style>",
        f'<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>',
        f'<text x="{LEFT}" y="18">Images done</text>',
    ]
    for share in (0, 0.5, 1):
        y = round(bottom - CURVE * share)
        parts.append(f'<path class="axis" d="M{LEFT} {y}h{SPAN}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{round(images * share):,}"))
    parts.append(f'<path class="done" d="{_line(report["timeline"], images, last, bottom)}"/>')
    for number, (name, count) in enumerate(rows.items()):
        y = bottom + ROW * number + 12
        times = [second for second, kind in report["times"] if kind in GROUPS.get(name, (name,))]
        parts.append(_text(LEFT - 8, y + 12, f"{name}: {count:,}"))
        parts.append(f'<path class="fault" d="{_marks(times, last, y)}"/>')
    parts += [_text(_x(minute * 60, last), height - 12, f"{minute} min", "middle") for minute in _minutes(last)]
    return "\n".join([*parts, "</svg>", ""])


def _line(timeline: Sequence[Sequence[float]], images: int, last: float, bottom: int) -> str:
    points = [f"{_x(second, last)} {bottom - CURVE * min(done, images) / images:.0f}" for second, done in timeline]
    return "M" + "L".join(points) if points else ""


def _marks(times: Iterable[float], last: float, y: int) -> str:
    """One mark a pixel at most, so that the file stays small."""
    return "".join(f"M{x} {y}v14" for x in sorted({_x(second, last) for second in times}))


def _minutes(last: float) -> range:
    return range(0, int(last // 60) + 1, max(1, int(last // 60) // 6))


def _x(second: float, last: float) -> int:
    return round(LEFT + SPAN * min(second / last, 1))


def _text(x: float, y: float, words: str, anchor: str = "end") -> str:
    return f'<text class="quiet" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
