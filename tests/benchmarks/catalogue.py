"""catalogue: the plan of a night of 1,000,000 items x 3 variants with 1 % changed, against reading the file alone.

And a whole night without changes: see night.py."""

import datetime as dt
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from services.core.catalogues import definition, expansion, planning
from services.core.catalogues.planning import Plan
from services.core.fleet.models import Model, Registry
from services.core.items.records import ItemFile
from tests.benchmarks import night
from tests.benchmarks.report import report

ITEMS = 1_000_000
_VARIANTS = {
    "front": {"prompt": "a {{ colour }} {{ title }} on white", "size": "512x512"},
    "lifestyle": {
        "prompt": "a {{ colour }} {{ title | downcase }} on a wooden table",
        "negative_prompt": "blurry",
        "when": "stock > 0",
    },
    "detail": {"prompt": "the detail of a {{ colour }} {{ title }}{% if material %}, {{ material }}{% endif %}"},
}


def run(items: int = ITEMS) -> None:
    with tempfile.TemporaryDirectory(prefix="presswork-catalogue-") as name:
        folder = Path(name)
        _write(folder / "monday.csv", items, changed=False)
        _write(folder / "tuesday.csv", items, changed=True)
        first, first_seconds = _planned(folder / "monday.csv", None, folder / "1")
        found, seconds = _planned(folder / "tuesday.csv", folder / "1", folder / "2")
        began = time.perf_counter()
        read = sum(1 for _ in _file(folder / "tuesday.csv", ["sku"]).items())
        reading = time.perf_counter() - began
        size = (folder / "2").stat().st_size
        _write(folder / "night.csv", night.ITEMS, changed=False)
        night.run(folder / "night.csv", _VARIANTS)
    assert read == items and found.pictures["changed"] == items // 100 * 3
    report(
        "catalogue", items / seconds, items / reading, "items/s", "reading the same file",
        items=items, pictures=first.pictures["new"], changed=found.pictures["changed"], seconds=round(seconds, 1),
        first_night_seconds=round(first_seconds, 1),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, list_mib=size >> 20,
    )  # fmt: skip


def _planned(feed: Path, previous: Path | None, path: Path) -> tuple[Plan, float]:
    given = {"source": {"file": feed.name}, "id": "sku", "variants": _VARIANTS}
    shop, problems = definition.read("shop", given)
    assert shop is not None, problems
    model = Model("mini", "first", (512, 512), 10, 7.5, {(512, 512): 50}, dt.datetime.now(dt.UTC))
    variants, problems = expansion.compile_variants("shop", shop, Registry(mini=model), "mini")
    assert not problems
    file = _file(feed, expansion.fields(shop, variants))
    began = time.perf_counter()
    plan = planning.make(shop, variants, file.items(), unit=file.unit, previous=previous, path=path)
    return plan, time.perf_counter() - began


def _file(path: Path, wanted: list[str]) -> ItemFile:
    return ItemFile(path=path, form="csv", wanted=wanted)


def _write(path: Path, items: int, *, changed: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("sku,title,colour,material,price,stock,description\n")
        file.writelines(_rows(items, changed=changed))


def _rows(items: int, *, changed: bool) -> Iterator[str]:
    """In an order that is not the ids', which is the slowest."""
    order = list(range(items))
    random.Random(7).shuffle(order)
    for n in order:
        colour = "teal" if changed and n % 100 == 0 else "red"
        stock = 0 if n % 10 == 5 else 1 + n % 7
        material = "wood" if n % 3 else ""
        yield f"SKU-{n:08d},Mug {n % 1000},{colour},{material},{n % 90}.99,{stock},{'A long text. ' * 8}\n"
