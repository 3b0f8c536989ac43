"""Output for people: results on stdout, everything else on stderr."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from presswork_client import (
    Action,
    Estimate,
    Event,
    Export,
    Image,
    Job,
    JobRequest,
    Model,
    Range,
    Schedule,
    ScheduleRun,
    ScheduleTimes,
    ScorerTrouble,
    Worker,
    WorkerDevices,
)
from services.cli import units
from services.core import terminal
from services.core.model import scopes

if TYPE_CHECKING:  # a database's library takes as long to import as all the rest
    from services.core.tenants.api_keys import Key

_PIPED_WIDTH = 240  # columns when the output is not a terminal, so that nothing is cut
_STYLES = {
    "completed": "green", "done": "green", "failed": "red", "expired": "red", "cancelled": "yellow",
    "cancelling": "yellow", "paused": "magenta", "in_progress": "cyan", "rendering": "cyan", "running": "cyan",
    "finalizing": "cyan", "draft": "blue",
    "refused": "red", "skipped": "yellow", "waiting": "blue", "submitting": "cyan",
}  # fmt: skip
_SHOWN_PROBLEMS = 20
_COUNTS = ("done", "failed", "cancelled", "reused", "total")
_CELLS = " ▏▎▍▌▋▊▉█"


class SafeConsole(Console):
    """Prints no escape sequence but its own: texts from a server may hold others."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else terminal.printable(text), style, control)


def out() -> Console:
    return SafeConsole(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def err() -> Console:
    return SafeConsole(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else _PIPED_WIDTH)


def say(sentence: str, style: str = "") -> None:
    """Prints a sentence on stderr. Indented lines are commands to copy and are never wrapped."""
    console = err()
    for line in f"presswork: {sentence}".split("\n"):
        console.print(Text(line, style=style), soft_wrap=line.startswith("  ") or not console.is_terminal)


def document(value: object) -> None:
    """Prints one JSON document as a line of stdout."""
    sys.stdout.write(terminal.json_line(value) + "\n")
    sys.stdout.flush()


def render(what: RenderableType) -> None:
    out().print(what)


def status(word: str, paused: bool = False) -> Text:
    shown = "paused" if paused and word in ("queued", "in_progress") else word
    return Text(shown.replace("_", " "), style=_STYLES.get(shown, ""))


def problems(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table of errors: the place, the field and the message. Equal errors share a row."""
    table = _table()
    place = next((name for name in ("line", "row", "index", "chunk") if found[0].get(name) is not None), "")
    if place:
        table.add_column(place.upper(), justify="right", style="bold")
    table.add_column("FIELD", style="red", overflow="fold", max_width=22)
    table.add_column("WHAT IS WRONG", overflow="fold")
    same: dict[tuple[str, str], list[Any]] = {}
    for problem in found:
        same.setdefault((problem.get("param") or "", str(problem["message"])), []).append(problem.get(place))
    for (field, message), places in islice(same.items(), _SHOWN_PROBLEMS):
        where = "" if places[0] is None else f"{places[0]:,}"
        others = f" (and {len(places) - 1:,} more with the same)" if len(places) > 1 else ""
        table.add_row(*([Text(where)] if place else []), Text(field), Text(message + others))
    if len(same) > _SHOWN_PROBLEMS:
        more = f"and {len(same) - _SHOWN_PROBLEMS:,} more, which --json prints"
        table.add_row(*([Text("")] if place else []), Text(""), Text(more, style="dim"))
    err().print(table)


def jobs(found: Iterable[Job]) -> Table:
    table = _table()
    table.add_column("JOB", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("DONE", justify="right", no_wrap=True)
    table.add_column("OF", justify="right", no_wrap=True)
    table.add_column("FAILED", justify="right", no_wrap=True)
    table.add_column("LEFT", justify="right", no_wrap=True)
    table.add_column("AGE", justify="right", no_wrap=True)
    table.add_column("LABELS", ratio=1)  # the only one that gives way; its cells are cut, not wrapped
    for job in found:
        counts = job["counts"]
        table.add_row(
            job["id"],
            status(job["status"], job["paused"]),
            units.share(counts["done"], counts["total"]),
            f"{counts['total']:,}",
            Text(f"{counts['failed']:,}" if counts["failed"] else "", style="red"),
            "" if job["eta_seconds"] is None or job["finished_at"] else units.duration(job["eta_seconds"]),
            units.age(job["created_at"], job["as_of"]),
            Text(labels(job), style="dim", no_wrap=True, overflow="ellipsis"),
        )
    return table


def in_short(found: Job) -> str:
    """A job in a few words."""
    counts, state = found["counts"], found["status"].replace("_", " ")
    words = f"{state}, {counts['done']:,} of {counts['total']:,} done"
    return f"{words}, {labels(found)}" if found["labels"] else words


def job(found: Job) -> RenderableType:
    counts = found["counts"]
    head = Text.assemble((found["id"], "bold"), "  ", status(found["status"], found["paused"]))
    if found["paused"] and not found["finished_at"]:
        head.append(f" ({found['status'].replace('_', ' ')})", style="dim")
    head.append(f", {found['priority']} priority")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("images", _counted(found))
    if found["rate"] and not found["finished_at"]:
        table.add_row("speed", units.speed(found["rate"]))
    if found["eta_seconds"] is not None and not found["finished_at"]:
        table.add_row("left", f"about {units.duration(found['eta_seconds'])}")
    table.add_row(
        "created", f"{units.local(found['created_at'])}  ({units.age(found['created_at'], found['as_of'])} ago)"
    )
    for name in ("started_at", "cancel_requested_at", "finished_at", "expires_at"):
        if given := found.get(name):
            took = ""
            if name == "finished_at" and found["started_at"]:
                took = f"  (after {units.age(found['started_at'], found['finished_at'] or found['as_of'])})"
            table.add_row(name.removesuffix("_at").replace("_", " "), f"{units.local(str(given))}{took}")
    extras = [
        word for word, given in (("dedupe", found.get("dedupe")), ("embed prompt", found.get("embed_prompt"))) if given
    ]
    if found.get("store") == "shards":
        extras.append("stored in shards")
    if extras:
        table.add_row("options", ", ".join(extras))
    if kept := found.get("retention"):
        table.add_row("keeps", units.kept(kept))
    for what, given in (("prompts", found.get("payloads_erased_at")), ("images", found.get("objects_deleted_at"))):
        if given:
            table.add_row(f"{what} gone", f"{units.local(given)}  (by the retention rules)")
    if found["labels"]:
        table.add_row("labels", Text(labels(found)))
    if found.get("retry_of"):
        table.add_row("retry of", found["retry_of"])
    if found.get("trace_id"):
        table.add_row("trace", found["trace_id"])
    parts: list[RenderableType] = [
        head,
        *(Text(warning, style="yellow") for warning in found.get("warnings", [])),
        bar(counts["done"], counts["failed"] + counts["cancelled"], counts["total"]),
        table,
    ]
    if counts["failed"]:
        hint = f"presswork items {found['id']} shows why"
        hint += f"; presswork retry {found['id']} tries them again" if found["finished_at"] else ""
        parts.append(Text(hint, style="dim"))
    return Group(*parts)


def timeline(found: Iterable[Event]) -> Table:
    """A job's events: time, kind and data."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for event in found:
        words = event["kind"].removeprefix("job.").replace("_", " ").replace(".", " ")
        fields = sorted(event["data"].items(), key=lambda field: _COUNTS.index(field[0]) if field[0] in _COUNTS else -1)
        data = ", ".join(_event_field(name, value) for name, value in fields if value and not _is_told(name, value))
        table.add_row(units.local(event["at"]), Text.assemble(words, (f"  {data}" if data else "", "dim")))
    return table


def bar(done: int, lost: int, total: int, width: int = 40) -> Text:
    """A progress bar: green is done, red is failed or cancelled."""
    if not total:
        return Text("no images yet", style="dim")
    eighths = done * width * 8 // total
    full, part = divmod(eighths, 8)
    red = min(width - full, -(-lost * width // total)) if lost else 0
    middle = _CELLS[part] if part and full + red < width else ""
    rest = width - full - red - len(middle)
    return Text.assemble(
        ("█" * full, "green"),
        (middle, "green"),
        ("█" * red, "red"),
        ("░" * rest, "dim"),
        f"  {units.share(done, total)}",
    )


def items(found: Iterable[JobRequest]) -> Table:
    table = _table()
    table.add_column("INDEX", justify="right", no_wrap=True)
    table.add_column("ID", overflow="fold", max_width=20)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("DONE", justify="right", no_wrap=True)
    table.add_column("PROMPT, AND WHAT WENT WRONG", overflow="fold", ratio=1)
    for item in found:
        done = sum(image["status"] == "done" for image in item["images"])
        words = Text(units.shortened(item["prompt"], 90))
        for reason in dict.fromkeys(_reason(image) for image in item["images"] if image["error"]):
            words.append(f"\n{reason}", style="red")
        for warning in dict.fromkeys(warning for image in item["images"] for warning in _warnings(image)):
            words.append(f"\n{warning}", style="yellow")
        table.add_row(
            f"{item['index']:,}", Text(item["custom_id"] or ""), status(item["status"]), f"{done}/{item['n']}", words
        )
    return table


def exports(found: Iterable[Export]) -> Table:
    table = _table()
    for name in ("EXPORT", "FORMAT", "STATUS"):
        table.add_column(name, no_wrap=True)
    table.add_column("IMAGES", justify="right", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("ERROR", overflow="fold", style="red")
    for export in found:
        done = f"{export['counts']['done']:,}/{export['counts']['total']:,}"
        table.add_row(
            export["id"], export["format"], status(export["status"]), done, units.size(export["bytes"]),
            Text(export["error"] or ""),
        )  # fmt: skip
    return table


def models(found: Iterable[Model]) -> Table:
    table = _table()
    table.add_column("MODEL", overflow="fold")
    table.add_column("SIZES", overflow="fold", ratio=1)
    table.add_column("STEPS", justify="right", no_wrap=True)
    table.add_column("GUIDANCE", justify="right", no_wrap=True)
    table.add_column("WORKERS", justify="right", no_wrap=True)
    for model in found:
        sizes = Text(" ").join(
            Text(name, style="bold" if name == model["default_size"] else "") for name in model["sizes"]
        )
        steps = f"{model['default_num_inference_steps']} of {model['max_num_inference_steps']}"
        workers = Text(str(model["workers"]), style="green" if model["workers"] else "red")
        table.add_row(Text(model["id"]), sizes, steps, f"{model['default_guidance_scale']:g}", workers)
    return table


def actions(found: Iterable[Action]) -> Table:
    table = _table()
    for name in ("WHEN", "WHO", "DID, AND WITH WHAT"):
        table.add_column(name, no_wrap=name == "WHEN", overflow="fold")
    for action in found:
        who = Text.assemble(action["actor"], (f" {action['actor_name']}" if action["actor_name"] else "", "dim"))
        data = ", ".join(f"{field} {value}" for field, value in action["data"].items() if value not in ("", None))
        did = Text.assemble(action["verb"], " ", (action["subject"], "bold"), ("\n" + data if data else "", "dim"))
        table.add_row(units.local(action["at"]), who, did)
    return table


def workers(found: Iterable[Worker]) -> Table:
    table = _table()
    for name in ("WORKER, HOST", "DEVICE, MODEL", "STATE", "SILENT"):
        table.add_column(name, no_wrap=name == "SILENT", overflow="fold")
    for worker in found:
        state = Text(worker["state"])
        if worker["drained"]:
            state.append(" drained", style="yellow")
        silent = units.duration(worker["silent_seconds"])
        doing = "; ".join([_batch(worker) or worker["doing"], *map(_scorer, worker["scorers"])]).removeprefix("; ")
        most = str(max(worker["batch_sizes"], default=""))
        table.add_row(
            _stacked(worker["id"], worker["host"]),
            _stacked(worker["device"], f"{worker['model']}, batches of up to {most}", _takes(worker)),
            _stacked(state, doing),
            silent,
        )
    return table


def _stacked(first: str | Text, *more: str) -> Text:
    """A cell of several lines, so that a table with much to say fits eighty columns."""
    return Text("\n").join(
        [Text(str(first)) if isinstance(first, str) else first, *(Text(one, "dim") for one in more if one)]
    )


def _takes(worker: Worker) -> str:
    """Seconds an image, of the sizes that were measured."""
    shown = [f"{one['size']}, {one['num_inference_steps']} steps: {one['seconds']:.3g} s" for one in worker["rates"]]
    return "; ".join(shown[:3]) + (" ..." if len(shown) > 3 else "")


def _scorer(trouble: ScorerTrouble) -> str:
    """Which images a scorer did not score, and why."""
    off = ", left out" if trouble["off"] else ""
    late = f", {trouble['late']:,} did not wait" if trouble["late"] else ""
    return f"scorer {trouble['name']}: {trouble['failed']:,} failed{late}{off} ({trouble['why']})"


def schedules(found: Iterable[Schedule]) -> Table:
    table = _table()
    for name in ("SCHEDULE", "WHEN", "ZONE", "NEXT", "LAST"):
        table.add_column(name, no_wrap=name in ("NEXT", "LAST"), overflow="fold")
    for one in found:
        last = one["last_run"]
        following = Text("paused", style="magenta") if one["paused"] else Text(_minute(one["next_at"]) or "never")
        table.add_row(
            Text(one["name"]),
            Text(one["cron"] or "once"),
            Text(one["timezone"]),
            following,
            Text("") if last is None else status(last["status"]),
        )
    return table


def schedule(found: Schedule) -> RenderableType:
    [(kind, target)] = found["target"].items()
    misfire = found["misfire"] + (f" (up to {found['misfire_limit']})" if found["misfire"] == "all" else "")
    rows = {
        "when": f"{found['cron'] or units.local(found['at'] or '')}  ({found['timezone']})",
        "next": "paused" if found["paused"] else _minute(found["next_at"]) or "never",
        "deadline": found["deadline"] or "",
        "if missed": misfire,
        "if the last goes on": found["overlap"],
        "changed": units.local(found["changed_at"]),
        kind: terminal.json_line(target),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            grid.add_row(name, Text(text))
    parts: list[RenderableType] = [Text(found["name"], style="bold"), grid]
    if found["last_run"]:
        parts += [Text(""), schedule_runs([found["last_run"]])]
    return Group(*parts)


def schedule_times(found: ScheduleTimes) -> Table:
    table = _table()
    table.add_column("HERE", no_wrap=True)
    table.add_column("UTC", no_wrap=True)
    for moment in found["times"]:
        table.add_row(units.local(moment), f"{units.moment(moment):%a %Y-%m-%d %H:%M}")
    return table


def schedule_runs(found: Iterable[ScheduleRun]) -> Table:
    table = _table()
    table.add_column("RUN OF", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("JOB", no_wrap=True)
    table.add_column("NOTE", overflow="fold")
    for run in found:
        late = "missed its deadline" if run["missed_at"] else "may miss its deadline" if run["at_risk_since"] else ""
        by = f"run by {run['asked_by']}" if run["asked_by"] else ""
        note = "; ".join(filter(None, (run["reason"], late, by)))
        table.add_row(
            _minute(run["scheduled_for"]), status(run["status"]), run["job_id"] or "", Text(note, style="dim")
        )
    return table


def _minute(moment: str | None) -> str:
    return "" if moment is None else units.local(moment).rpartition(":")[0]


def _batch(worker: Worker) -> str:
    batch = worker["batch"]
    return f"{batch['images']} of {batch['of']}, step {batch['step']}/{batch['steps']}" if batch else ""


def devices(found: Iterable[WorkerDevices]) -> Table:
    table = _table()
    for name in ("DEVICE", "MODEL", "BUSY", "IDLE", "DRAINED", "SICK", "STARTING", "RATE"):
        is_text = name in ("DEVICE", "MODEL")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for one in found:
        states = (one["busy"], one["idle"], one["drained"], one["sick"], one["starting"])
        table.add_row(one["device"] or "not known yet", one["model"], *map(str, states), units.speed(one["rate"]))
    return table


def keys(found: "Iterable[Key]") -> Table:
    table = _table()
    for name in ("KEY", "NAME", "SCOPES", "TENANT", "CREATED", "USED", "ENDS"):
        table.add_column(name, no_wrap=name not in ("NAME", "SCOPES", "TENANT", "ENDS"), overflow="fold")
    for key in found:
        ended = key.status != "active"
        ends = key.revoked_at or key.expires_at
        table.add_row(
            Text(key.prefix, style="dim" if ended else ""),
            Text(key.name),
            Text("all" if len(key.scopes) == len(scopes.ALL) else " ".join(key.scopes)),
            Text(key.tenant),
            units.day(key.created_at),
            "never" if key.last_used_at is None else units.day(key.last_used_at),
            Text.assemble(
                ("never" if ends is None else units.day(ends)),
                (f" {key.status}" if ended else "", "red"),
            ),
        )
    return table


def estimate(found: Estimate) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    grid.add_row("images", f"{found['images']:,}")
    grid.add_row("ahead of them", f"{found['ahead']:,} images that are queued")
    grid.add_row("accelerator", _range(found["accelerator_seconds"]))
    grid.add_row("until all is done", _range(found["seconds_to_finish"]))
    served = (
        Text(f"{found['workers']} live", style="green")
        if found["served"]
        else Text(f"{found['workers']} live; no worker serves all of it right now", style="red")
    )
    grid.add_row("workers", served)
    table = _table()
    for name in ("MODEL", "SIZE", "STEPS", "GUIDED", "IMAGES", "EACH", "WORKERS"):
        table.add_column(name, justify="left" if name in ("MODEL", "SIZE", "GUIDED") else "right", overflow="fold")
    for shape in found["shapes"]:
        each = shape["seconds_per_image"]
        guess = "~" if shape["measured"] == "another shape" else ""
        table.add_row(
            Text(shape["model"]), shape["size"], str(shape["num_inference_steps"]), "yes" if shape["guided"] else "no",
            f"{shape['images']:,}", "not measured" if each is None else f"{guess}{each:.3g} s", str(shape["workers"]),
        )  # fmt: skip
    return Group(grid, "", table)


def _range(found: Range | None) -> str:
    if found is None:
        return "not known: this model was not measured yet"
    expected, low, high = (units.duration(found[name]) for name in ("expected", "low", "high"))
    return expected if low == high else f"{expected}  (from {low} to {high})"


def labels(found: Job) -> str:
    return " ".join(f"{name}={value}" for name, value in found["labels"].items())


def _table() -> Table:
    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))


def _is_told(name: str, value: object) -> bool:
    """Whether an event of its own says it: a job that is created queued has the event `job.queued` as well."""
    return name == "state" and value == "queued"


def _event_field(name: str, value: object) -> str:
    """A field of an event: `3 done` for a count, `index 3` for an index, else the value."""
    if name in ("index", "device"):
        return f"{name} {value}"
    return f"{value:,} {name}" if isinstance(value, int) else str(value).replace("_", " ")


def _counted(found: Job) -> Text:
    counts = found["counts"]
    reused = found.get("reused")
    words = Text(f"{counts['done']:,} of {counts['total']:,} done", style="")
    if reused:
        words.append(f" ({reused:,} of them reused)", style="dim")
    for name in ("rendering", "queued", "failed", "cancelled"):
        if counts[name]:
            words.append(f", {counts[name]:,} {name}", style=_STYLES.get(name, ""))
    return words


def _reason(image: Image) -> str:
    error = image["error"]
    return "" if error is None else f"{error['code']}: {error['message']}"


def _warnings(image: Image) -> list[str]:
    """What the model reports about the prompt or the picture."""
    found = []
    if image["truncated"]:
        found.append("truncated: the prompt is longer than the model reads")
    if image["unknown_words"]:
        found.append(f"unknown to the model: {', '.join(image['unknown_words'])}")
    if image["flagged"]:
        found.append("flagged by the safety checker")
    return found
