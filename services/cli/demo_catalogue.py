"""`presswork demo-catalogue`: a small shop's catalogue on two nights, the second of which redraws what has changed."""

import html
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from presswork_client import CatalogueChange, CatalogueRun, Client, ClientError
from services.cli import demo, show
from services.cli.profile import local_stack
from services.core.model.errors import PressworkError

console = show.out()
NAME = "demo"
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black")
THINGS = ("mug", "chair", "lamp", "bag", "hat", "clock")
DEFINITION = {
    "source": {"file": "shop.jsonl"},
    "id": "sku",
    "publish": {"require": 0.95},
    "variants": {
        "front": {"prompt": "a {{ colour }} {{ thing }} on a white background"},
        "room": {"prompt": "a {{ colour }} {{ thing }} on a wooden floor"},
        "pair": {"prompt": "two {{ colour }} {{ thing }}s on a grey background"},
    },
}
CHANGED, REMOVED = 10, 2
EXPECTED = {"changed": 30, "removed": 6, "broken": 3, "unchanged": 141}  # three pictures each
ENDED = ("published", "unchanged", "kept", "failed", "cancelled")
POLL_SECONDS = 0.25
Products = dict[str, dict[str, str]]


def run(home: Path, output: Path, pipeline: str) -> int:
    with demo.stack(home, pipeline) as client:
        local = local_stack(home)
        if local is not None:
            console.print(f"the dashboard is at {local.url}", soft_wrap=True)
        try:
            return _two_nights(client, output)
        except ClientError as error:
            raise PressworkError(str(error)) from error


def _two_nights(client: Client, output: Path) -> int:
    _prepare(client, output)
    products = dict(_products())
    first = _night(
        client, output, products, f"night 1: {len(products)} products, {len(DEFINITION['variants'])} pictures each"
    )
    if first["state"] != "published":
        return 1
    second = _night(
        client, output, dict(_next_day(products)), f"night 2: {CHANGED} products changed, {REMOVED} gone, one broken"
    )
    page = _write_page(client, second, first, output)
    found = {kind: second["counts"][kind] for kind in EXPECTED}  # type: ignore[literal-required]
    console.print(f"before and after: {page}", soft_wrap=True)
    return 0 if second["state"] == "published" and found == EXPECTED else 1


def _prepare(client: Client, output: Path) -> None:
    """An empty folder, and a new catalogue."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for earlier in output.glob("*-*.*"):
            earlier.unlink()
    except OSError as error:
        raise PressworkError(f"{output} cannot be written ({error.strerror}); name another with --output.") from error
    if any(one["name"] == NAME for one in client.catalogues()):
        client.delete_catalogue(NAME)
    client.put_catalogue(NAME, DEFINITION)


def _products() -> Iterator[tuple[str, dict[str, str]]]:
    for thing in THINGS:
        for number, colour in enumerate(COLOURS, 1):
            yield f"{thing}-{number:02d}", {"colour": colour, "thing": thing}


def _next_day(products: Products) -> Iterator[tuple[str, dict[str, str]]]:
    """The first are in another colour, the last are gone, and the one before these has lost its colour."""
    kept = list(products.items())[:-REMOVED]
    for number, (sku, product) in enumerate(kept):
        if number < CHANGED:
            yield sku, product | {"colour": COLOURS[(number + 5) % len(COLOURS)]}
        elif number == len(kept) - 1:
            yield sku, {"thing": product["thing"]}
        else:
            yield sku, product


def _night(client: Client, output: Path, products: Products, title: str) -> CatalogueRun:
    feed = output / "shop.jsonl"
    rows = [json.dumps({"sku": sku, **product}) for sku, product in products.items()]
    feed.write_text("\n".join(rows) + "\n", encoding="utf-8")
    client.upload_to_catalogue(NAME, feed)
    found = _watch(client, client.run_catalogue(NAME)["id"], title)
    counts = found["counts"]
    console.print(
        f"{title}: {counts['new']} new, {counts['changed']} changed, {counts['unchanged']} unchanged, "
        f"{counts['removed']} removed, {counts['broken']} broken: {found['state']}"
        + (f" as version {found['version']}" if found["version"] else ""),
        soft_wrap=True,
    )
    if found["error"]:
        console.print(found["error"]["message"], soft_wrap=True)
    for change in client.catalogue_changes(NAME, found["id"], troubled=True):
        why = change["error"]["message"] if change["error"] else ""
        console.print(f"  line {change['line']}, {change['item']} {change['variant']}: {why}", soft_wrap=True)
    return found


def _watch(client: Client, run_id: str, title: str) -> CatalogueRun:
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(title, total=None)
        while (found := client.catalogue_run(NAME, run_id))["state"] not in ENDED:
            if found["job_id"]:
                counts = client.job(found["job_id"])["counts"]
                done = counts["done"] + counts["failed"]
                bar.update(task, total=counts["total"], completed=done, description=found["state"])
            time.sleep(POLL_SECONDS)
        return found


def _write_page(client: Client, second: CatalogueRun, first: CatalogueRun, output: Path) -> Path:
    """A page of the changed pictures, before and after."""
    changed = list(client.catalogue_changes(NAME, second["id"], kind="changed"))
    assert first["version"] is not None
    assert second["version"] is not None
    rows = []
    for change in changed:
        cells = [f"<th>{html.escape(change['item'])}, {html.escape(change['variant'])}</th>"]
        for word, version in (("before", first["version"]), ("after", second["version"])):
            cells.append(f"<td>{_picture(client, change, word, version, output)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    page = output / "before-and-after.html"
    head = "<tr><th>Picture</th><th>Before</th><th>After</th></tr>"
    title = f"{len(changed)} pictures changed in version {second['version']}"
    page.write_text(_PAGE.format(title=title, rows=head + "".join(rows)), encoding="utf-8")
    return page


def _picture(client: Client, change: CatalogueChange, word: str, version: int, output: Path) -> str:
    file = output / f"{change['item']}-{change['variant']}-{word}.png"
    file.write_bytes(client.catalogue_picture(NAME, change["item"], change["variant"], version))
    return f'<img src="{file.name}" alt="{word}" width="192">'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th {{ text-align: left; font-weight: 600; padding-right: 1.5rem; }}
td {{ padding: 0.3rem; }}
img {{ display: block; border-radius: 6px; max-width: 100%; }}
</style></head><body><h1>{title}</h1><table>{rows}</table></body></html>
"""
