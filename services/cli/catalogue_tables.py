"""Catalogues, their runs, versions and pictures as people read them."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from presswork_client import (
    Catalogue,
    CatalogueChange,
    CatalogueDestination,
    CatalogueDifference,
    CatalogueItem,
    CatalogueRun,
    CatalogueVersion,
    Estimate,
)
from services.cli import units

_STYLES = {
    "published": "green", "unchanged": "green", "planned": "green", "kept": "yellow", "cancelled": "yellow",
    "failed": "red", "done": "green", "added": "green", "changed": "cyan", "removed": "yellow",
}  # fmt: skip
_FOUND = ("new", "changed", "model", "retried", "unchanged", "removed", "broken")
_SAID = {
    "new": "not in the version before",
    "changed": "another prompt, seed or size",
    "model": "the same, for another model",
    "retried": "failed last time",
    "unchanged": "kept, nothing is rendered or copied",
    "removed": "gone from the source",
    "broken": "cannot be rendered as it stands",
}


def catalogues(found: Iterable[Catalogue]) -> Table:
    table = _table("CATALOGUE", "PUBLISHED", "VARIANTS", "SOURCE", right=("PUBLISHED",))
    for one in found:
        table.add_row(
            Text(one["name"], style="bold"), _published(one), Text(", ".join(one["definition"]["variants"])),
            Text(source(one)),
        )  # fmt: skip
    return table


def catalogue(found: Catalogue) -> RenderableType:
    grid = _grid()
    grid.add_row("source", Text(source(found)))
    grid.add_row("variants", Text(", ".join(found["definition"]["variants"])))
    schedule = found["definition"].get("schedule")
    if schedule:
        deadline = f", deadline {schedule['deadline']}" if schedule.get("deadline") else ""
        grid.add_row("schedule", Text(f"{schedule['cron']} {schedule.get('timezone', 'UTC')}{deadline}"))
    grid.add_row("published", _published(found))
    if found["public_url"]:
        grid.add_row("links", Text(f"{found['public_url']}/VARIANT/ITEM"))
    if found["destination"]:
        grid.add_row("copied to", destination(found["destination"]))
    return Group(Text(found["name"], style="bold"), grid)


def destination(found: CatalogueDestination) -> Text:
    """Where a version is copied to, and how far that has come."""
    words = Text.assemble(f"s3://{found['s3']}: version {found['version']} ", state(found["state"]))
    if found["state"] == "copying":
        words.append(f", {found['copied']:,} copied so far")
    elif found["copied"] or found["deleted"]:
        words.append(f", {found['copied']:,} copied, {found['deleted']:,} deleted")
    if found["error"] is not None:
        again = f"it is tried again at {units.local(found['next_at'])}" if found["next_at"] else "it waits for a change"
        words.append(f"\n{found['error']['message']}\n", style="red")
        words.append(f"{again}; `presswork catalogue publish` tries at once", style="dim")
    return words


def runs(found: Iterable[CatalogueRun]) -> Table:
    table = _table(
        "RUN", "STATE", "VERSION", "RENDERED", "FAILED", "TOOK", "AGE", right=("VERSION", "RENDERED", "FAILED")
    )
    for one in found:
        counts, seconds = one["counts"], one["seconds"]["total"]
        table.add_row(
            one["id"], state(one["state"]), "" if one["version"] is None else str(one["version"]),
            f"{counts['done']:,}", Text(f"{counts['failed']:,}" if counts["failed"] else "", style="red"),
            "" if seconds is None else units.duration(seconds), units.age(one["created_at"]),
        )  # fmt: skip
    return table


def report(found: CatalogueRun, estimate: Estimate | None = None) -> RenderableType:
    """What a run found and did, or would do."""
    head = Text.assemble((found["catalogue"], "bold"), "  ", state(found["state"]))
    if found["version"] is not None:
        head.append(f", version {found['version']}")
    if found["base"]:
        head.append(f", compared with version {found['base']}", style="dim")
    parts: list[RenderableType] = [head]
    if found["error"] is not None:
        parts.append(Text(found["error"]["message"], style="red" if found["state"] == "failed" else "yellow"))
    return Group(*parts, "", _found(found), "", _figures(found, estimate))


def problems(found: Sequence[CatalogueChange], more: bool) -> RenderableType:
    """What went wrong, each with its line in the source."""
    table = _table("LINE", "ITEM", "VARIANT", "WHAT IS WRONG", right=("LINE",))
    for one in found:
        said = one["error"]["message"] if one["error"] else ""
        line = "" if one["line"] is None else f"{one['line']:,}"
        table.add_row(line, Text(units.shortened(one["item"], 24)), Text(one["variant"]), Text(said, style="red"))
    rest = [Text("and more, which --json prints", style="dim")] if more else []
    return Group("", table, *rest)


def versions(found: Iterable[CatalogueVersion]) -> Table:
    table = _table("VERSION", "", "IMAGES", "SIZE", "MADE", "RUN", right=("VERSION", "IMAGES", "SIZE"))
    for one in found:
        table.add_row(
            str(one["version"]), Text("published" if one["published"] else "", style="green"), f"{one['images']:,}",
            units.size(one["bytes"]), units.local(one["created_at"]), Text(one["run_id"], style="dim"),
        )  # fmt: skip
    return table


def differences(found: Iterable[CatalogueDifference]) -> Table:
    table = _table("", "ITEM", "VARIANT", "PROMPT")
    for one in found:
        prompts = [(side["prompt"] if side else None) or "" for side in (one["before"], one["after"])]
        shown = prompts if prompts[0] != prompts[1] else prompts[:1]
        words = " -> ".join(units.shortened(prompt, 60) for prompt in shown if prompt)
        table.add_row(state(one["kind"]), Text(units.shortened(one["item"], 24)), Text(one["variant"]), Text(words))
    return table


def items(found: Iterable[CatalogueItem]) -> Table:
    table = _table("ITEM", "VARIANT", "FROM", "SIZE", "PROMPT", right=("FROM", "SIZE"))
    for one in found:
        words = Text(units.shortened(one["prompt"] or "", 60))
        if one["stale"]:
            words.append("\nstale: another picture was asked for and could not be made", style="yellow")
        table.add_row(
            Text(units.shortened(one["item"], 24)), Text(one["variant"]), f"v{one['version']}",
            units.size(one["bytes"]), words,
        )  # fmt: skip
    return table


def state(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, "cyan"))


def source(found: Catalogue) -> str:
    given = found["definition"]["source"]
    return str(next((given[name] for name in ("file", "url", "s3") if given.get(name)), ""))


def _published(found: Catalogue) -> Text:
    number = found["published"]
    return Text("nothing yet", style="dim") if number is None else Text(f"version {number}", style="green")


def _found(found: CatalogueRun) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for name in _FOUND:
        count = found["counts"][name]  # type: ignore[literal-required]
        if count or name in ("new", "changed", "unchanged", "removed"):
            grid.add_row(Text(name, style="red" if name == "broken" else ""), f"{count:,}", _SAID[name])
    return grid


def _figures(found: CatalogueRun, estimate: Estimate | None) -> Table:
    grid, counts, seconds = _grid(), found["counts"], found["seconds"]
    if found["source"]["title"] or found["source"]["items"] is not None:
        items = "" if found["source"]["items"] is None else units.count(found["source"]["items"], "item")
        size = "" if found["source"]["bytes"] is None else units.size(found["source"]["bytes"])
        grid.add_row("source", Text(", ".join(filter(None, (found["source"]["title"], items, size)))))
    if found["job_id"] is not None:
        words = [f"{counts[name]:,} {name}" for name in ("done", "failed", "rejected") if counts[name]]
        grid.add_row("rendered", Text(f"{', '.join(words) or 'nothing yet'} ({found['job_id']})"))
    if found["destination"] is not None:
        grid.add_row("copied to", destination(found["destination"]))
    if estimate is not None:
        grid.add_row("time", _time(estimate))
    if seconds["total"] is not None and not found["plan_only"]:
        device = found["device_seconds"]
        used = f", {units.duration(device)} of accelerators" if device else ""
        grid.add_row("took", f"{units.duration(seconds['total'])}{used}")
    return grid


def _time(estimate: Estimate) -> Text:
    if not estimate["images"]:
        return Text("nothing is to be rendered")
    span = estimate["seconds_to_finish"]
    if span is None:
        why = "this model was not measured yet" if estimate["workers"] else "no worker serves it right now"
        return Text(f"not known: {why}", style="" if estimate["workers"] else "red")
    expected, low, high = (units.duration(span[name]) for name in ("expected", "low", "high"))
    return Text(f"about {expected}" + (f" (from {low} to {high})" if low != high else ""))


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _table(*names: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=number < 1)
    return table
