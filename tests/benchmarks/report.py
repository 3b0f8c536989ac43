"""Reports a benchmark's figures: lines for people, and a JSON file."""

import json
import os
import platform
import time
from pathlib import Path

FOLDER = Path("bench-results")


def report(name: str, value: float, baseline: float, unit: str, compared: str, **more: object) -> None:
    """`value` is Presswork's figure, `baseline` the one it is compared with in the same run."""
    ratio = value / baseline if baseline else float("inf")
    entry = {
        "name": name,
        "value": value,
        "baseline": baseline,
        "ratio": ratio,
        "unit": unit,
        "compared_with": compared,
        "machine": machine(),
        "command": f"make bench NAME={name}",
        "date": time.strftime("%Y-%m-%d"),
        **more,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n")
    print(f"{name}: {value:,.4g} {unit}; {compared}: {baseline:,.4g}; ratio {ratio:.3g}")
    for key, found in more.items():
        print(f"  {key}: {found}")
    print(f"  on {entry['machine']}, {entry['date']}", flush=True)


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
