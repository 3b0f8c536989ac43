"""`presswork submit` and `estimate`: make a job from a file, stdin or a matrix, or estimate it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from presswork_client import Client, ClientError, Job
from services.cli import checking, follow, matrices, options, sending, show, units
from services.cli.exits import BadInput, Exit, Usage, guarded
from services.cli.pictures import Pictures
from services.cli.profile import connect
from services.cli.screening import screened
from services.core.items import reading
from services.core.model import requests

_PATIENCE_SECONDS = 120.0
_FIELDS, _HOW = "Defaults for fields that a request does not set", "Reading the file"
_MATRIX, _SENT = "A matrix instead of a file", "Sending"

File = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="JSONL, CSV, TSV, Excel, Parquet or text; - is stdin.", show_default=False),
]
Form = Annotated[
    Literal["jsonl", "csv", "tsv", "xlsx", "parquet", "text"] | None,
    typer.Option("--format", help="If the file's name does not show it.", rich_help_panel=_HOW, show_default=False),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        rich_help_panel=_HOW,
        show_default=False,
        help="The column of a field or of metadata, such as prompt=caption; prompt= means no column. May be repeated.",
    ),
]
MetadataColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME",
        rich_help_panel=_HOW,
        show_default=False,
        help="A column to keep as metadata; by default all that are no fields, with '' none. May be repeated.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        metavar="CHARACTER",
        rich_help_panel=_HOW,
        show_default=False,
        help="What separates cells, or comma, semicolon, tab, pipe; else it is detected.",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        metavar="NAME",
        rich_help_panel=_HOW,
        show_default=False,
        help="Of text, such as utf-16 or cp1252; else it is detected.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", rich_help_panel=_FIELDS, show_default=False, help="`presswork models` lists them."
    ),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", rich_help_panel=_FIELDS, show_default=False, help="Such as 512x512."),
]
Steps = Annotated[
    int | None, typer.Option("--steps", rich_help_panel=_FIELDS, show_default=False, help="num_inference_steps.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", rich_help_panel=_FIELDS, show_default=False, help="guidance_scale; 1 or less: no guidance."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", rich_help_panel=_FIELDS, show_default=False, help="Random for each request if absent."),
]
N = Annotated[
    int | None, typer.Option("--n", "-n", rich_help_panel=_FIELDS, show_default=False, help="Images of each request.")
]
Negative = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt", metavar="TEXT", rich_help_panel=_FIELDS, show_default=False, help="What not to show."
    ),
]
Output = Annotated[
    Literal["png", "jpeg", "webp"] | None,
    typer.Option("--output-format", rich_help_panel=_FIELDS, show_default=False, help="The format of the image files."),
]
Compression = Annotated[
    int | None,
    typer.Option(
        "--output-compression", rich_help_panel=_FIELDS, show_default=False, help="Quality, 0 to 100, of jpeg and webp."
    ),
]
Picture = Annotated[
    str | None,
    typer.Option(
        "--image", metavar="FILE", rich_help_panel=_FIELDS, show_default=False,
        help="A picture to draw from: a file, or the id of one or of an earlier image (job_.../3).",
    ),
]  # fmt: skip
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength", rich_help_panel=_FIELDS, show_default=False, help="How much of the image is redrawn, up to 1."
    ),
]
Class = Annotated[
    str | None,
    typer.Option(
        "--reproducibility-class", metavar="CLASS", rich_help_panel=_FIELDS, show_default=False,
        help="Render in this class alone, so that all bytes come from one kind of device; `presswork models --json`.",
    ),
]  # fmt: skip
Matrix = Annotated[
    str | None,
    typer.Option(
        "--matrix",
        metavar="TEMPLATE",
        rich_help_panel=_MATRIX,
        show_default=False,
        help='"a {colour} mug", or a .json file with the matrix.',
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="NAME=A,B,...",
        rich_help_panel=_MATRIX,
        show_default=False,
        help="The values of a name; may be repeated.",
    ),
]
Combine = Annotated[
    Literal["product", "zip"] | None,
    typer.Option(
        "--combine", rich_help_panel=_MATRIX, show_default=False, help="All combinations, or first with first."
    ),
]
Repeat = Annotated[
    int | None,
    typer.Option("--repeat", min=1, rich_help_panel=_MATRIX, show_default=False, help="Images of each combination."),
]


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the commands of this file."""
    app.command("submit", rich_help_panel=panel)(guarded(submit))
    app.command("estimate", rich_help_panel=panel)(guarded(estimate))


def submit(
    file: File = None,
    form: Form = None,
    column: Columns = None,
    metadata: MetadataColumns = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    skip_bad: Annotated[
        Path | None,
        typer.Option(
            "--skip-bad",
            metavar="REJECTS.CSV",
            rich_help_panel=_HOW,
            show_default=False,
            help="Submit the good rows, and write the bad ones there with their reasons.",
        ),
    ] = None,
    fix_ids: Annotated[
        bool,
        typer.Option("--fix-ids", rich_help_panel=_HOW, help="Make missing, duplicate or invalid custom_ids valid."),
    ] = False,
    model: Model = None,
    size: Size = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    n: N = None,
    negative_prompt: Negative = None,
    output_format: Output = None,
    output_compression: Compression = None,
    image: Picture = None,
    strength: Strength = None,
    reproducibility_class: Class = None,
    matrix: Matrix = None,
    vary: Vary = None,
    combine: Combine = None,
    repeat: Repeat = None,
    priority: options.Priority = None,
    label: options.Labels = None,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Reuse images that were rendered before; needs seeds.")
    ] = False,
    embed_prompt: Annotated[bool, typer.Option("--embed-prompt", help="Write the prompt into the files.")] = False,
    store: Annotated[
        requests.Store | None, typer.Option(help="An object for each image, or tars of many.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="KIND=AGE",
            help="For how long after its end: payloads=30d, objects=1y, records=never. May be repeated.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; submit nothing.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="JOB", help="Resume an interrupted submission.", rich_help_panel=_SENT, show_default=False
        ),
    ] = None,
    chunk: Annotated[
        int,
        typer.Option(
            min=1, max=1_000_000, help="Requests a part; more than two parts make a draft.", rich_help_panel=_SENT
        ),
    ] = sending.CHUNK_REQUESTS,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            rich_help_panel=_SENT,
            show_default=False,
            help="With the same key, a repeated command makes one job.",
        ),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Submit prompts: a file, stdin (-), or a matrix of combinations.

    Prompts are streamed. Many are sent in parts; if that is interrupted, --resume sends the rest.
    """  # fmt: skip
    defaults = _defaults(model, size, steps, guidance, seed, n, negative_prompt, output_format, output_compression)
    if reproducibility_class is not None:
        defaults["reproducibility_class"] = reproducibility_class
    labels = options.pairs(label, "--label")
    given = {
        "priority": priority, "labels": labels, "dedupe": dedupe, "embed_prompt": embed_prompt, "store": store,
    }  # fmt: skip
    head: dict[str, Any] = {name: value for name, value in given.items() if value}
    if keep:
        head["retention"] = options.kept(keep)
    grid = _grid(matrix, vary, combine, repeat, file, resume)
    if grid is not None:
        if skip_bad or fix_ids:
            raise Usage("--skip-bad and --fix-ids belong to a FILE.")
        with connect(profile, _PATIENCE_SECONDS) as client:
            pictures = Pictures(None if dry_run else client, Path())
            defaults |= _drawn_from(pictures, image, strength)
            grid = pictures.of_matrix(grid)
            if dry_run:
                return _dry_matrix(client, grid, defaults, head, as_json)
            return _after(client, matrices.send(client, grid, defaults, head, key, quiet=as_json), watch, as_json)
    source = _source(file, form, column, metadata, defaults, delimiter, encoding)
    again = resume is not None or key is not None
    with connect(profile, _PATIENCE_SECONDS) as client:
        pictures = Pictures(None if dry_run else client, source.path.parent)
        source.defaults = {**source.defaults, **_drawn_from(pictures, image, strength)}
        with screened(client, source, fix_ids=fix_ids, skip_bad=skip_bad, replace=again, pictures=pictures) as rows:
            if dry_run:
                return _dry_run(client, source, rows, head, as_json)
            if resume is not None:
                job = sending.go_on(client, source, rows, resume, chunk)
            else:
                job = sending.send(client, source, rows, head, chunk, key)
        return _after(client, job, watch, as_json)


def estimate(
    file: File = None,
    form: Form = None,
    column: Columns = None,
    metadata: MetadataColumns = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="That many images, without a file.", show_default=False)
    ] = None,
    model: Model = None,
    size: Size = None,
    steps: Steps = None,
    guidance: Guidance = None,
    n: N = None,
    matrix: Matrix = None,
    vary: Vary = None,
    combine: Combine = None,
    repeat: Repeat = None,
    priority: options.Priority = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> Exit:
    """Estimate how long a file, a matrix or a number of images takes."""
    defaults = _defaults(model, size, steps, guidance, None, n, None, None, None)
    head: dict[str, Any] = {"priority": priority} if priority else {}
    if images is not None:
        if file is not None or matrix is not None:
            raise Usage("--images replaces a file or a matrix; give one of the three.")
        shape = {"images": images * (n or 1)} | {name: value for name, value in defaults.items() if name != "n"}
        with connect(profile) as client:
            _shown(client.estimate(shapes=[shape], **head), as_json)
        return Exit.OK
    grid = _grid(matrix, vary, combine, repeat, file, None)
    if grid is not None:
        with connect(profile) as client:
            return _dry_matrix(client, grid, defaults, head, as_json)
    source = _source(file, form, column, metadata, defaults, delimiter, encoding)
    with connect(profile) as client, screened(client, source, fix_ids=False, skip_bad=None, replace=False) as rows:
        return _dry_run(client, source, rows, head, as_json)


def _dry_matrix(client: Client, grid: Any, defaults: Mapping[str, Any], head: Mapping[str, Any], as_json: bool) -> Exit:
    with_defaults: dict[str, Any] = {"defaults": dict(defaults)} if defaults else {}
    found = client.preview(grid, **with_defaults)
    if not as_json:
        matrices.show_preview(found)
    drawn = 0 if "seed" in {**defaults, **grid, **grid["vary"]} else found["requests"]
    _warn(found["requests"], head, drawn)
    _shown(client.estimate(matrix=grid, **with_defaults, **_priority(head)), as_json)
    return Exit.OK


def _dry_run(
    client: Client, source: reading.Source, rows: Iterable[reading.Row], head: Mapping[str, Any], as_json: bool
) -> Exit:
    counted = checking.check(source, rows)
    found = f"{units.count(counted.requests, 'request')} for {units.count(counted.images, 'image')}"
    show.say(f"{found}, all well formed")
    _warn(counted.requests, head, counted.drawn_seeds)
    try:
        _shown(client.estimate(shapes=counted.shapes(), **_priority(head)), as_json)
    except ClientError as error:
        raise _of_requests(error) from None
    return Exit.OK


def _warn(count: int, head: Mapping[str, Any], drawn_seeds: int) -> None:
    for warning in requests.warnings(count, dedupe=bool(head.get("dedupe")), drawn_seeds=drawn_seeds):
        show.say(warning, style="yellow")


def _priority(head: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in head.items() if name == "priority"}


def _of_requests(error: ClientError) -> Exception:
    """The errors of an estimate's shapes, as errors of the requests with these shapes."""
    shape = re.compile(r"^shapes\[\d+\]\.")
    found: dict[str, dict[str, Any]] = {}
    for entry in error.errors:
        message = shape.sub("", entry["message"])
        found[message] = {"param": shape.sub("", entry.get("param") or ""), "code": entry["code"], "message": message}
    return BadInput("; ".join(found), list(found.values())) if found else error


def _shown(found: Any, as_json: bool) -> None:
    if as_json:
        show.document(found)
    else:
        show.render(show.estimate(found))


def _after(client: Client, job: Job, watch: bool, as_json: bool) -> Exit:
    if watch:
        show.say(f"{job['id']} has {units.count(job['counts']['total'], 'image')}")
        for warning in job.get("warnings", []):
            show.say(warning, style="yellow")
        return follow.job(client, job["id"], as_json)
    if as_json:
        show.document(job)
    else:
        show.render(show.job(job))
    return Exit.OK


def _grid(
    matrix: str | None, vary: list[str] | None, combine: str | None, repeat: int | None, file: Path | None, resume: Any
) -> Any:
    if matrix is None:
        if vary or combine or repeat:
            raise Usage("--vary, --combine and --repeat belong to --matrix.")
        return None
    if file is not None or resume is not None:
        raise Usage("A matrix replaces FILE and cannot be resumed.")
    return matrices.read(matrix, options.pairs(vary, "--vary"), combine, repeat)


def _source(
    file: Path | None,
    form: Any,
    column: list[str] | None,
    metadata: list[str] | None,
    defaults: Mapping[str, Any],
    delimiter: str | None,
    encoding: str | None,
) -> reading.Source:
    if file is None:
        raise Usage("Nothing to submit: give a FILE, - for stdin, or --matrix.")
    columns = options.pairs(column, "--column")
    source = reading.source(file, form, columns, defaults, metadata=metadata, delimiter=delimiter, encoding=encoding)
    source.tell = lambda remark: show.say(remark, style="dim")
    return source


def _drawn_from(pictures: Pictures, image: str | None, strength: float | None) -> dict[str, Any]:
    """The two as defaults."""
    given = {"image": None if image is None else pictures.of_option(image), "strength": strength}
    return {name: value for name, value in given.items() if value is not None}


def _defaults(
    model: Any, size: Any, steps: Any, guidance: Any, seed: Any, n: Any, negative: Any, output: Any, compression: Any
) -> dict[str, Any]:
    given = {
        "model": model, "size": size, "num_inference_steps": steps, "guidance_scale": guidance, "seed": seed, "n": n,
        "negative_prompt": negative, "output_format": output, "output_compression": compression,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}
