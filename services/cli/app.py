"""The `presswork` command. It talks to servers over HTTP and runs heavy work in separate processes."""

import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import (
    actions,
    ai100,
    audit,
    backup,
    bench,
    bulk,
    catalogues,
    datasets,
    downloads,
    exports,
    images,
    jobs,
    keys,
    lanes,
    manual,
    marks,
    metrics,
    model,
    opening,
    options,
    overview,
    policy,
    prompts,
    removal,
    retention,
    schedules,
    show,
    storage,
    submit,
    tenant_deletion,
    tenants,
    top,
    waiting,
    webhooks,
    workers,
)
from services.cli.exits import EPILOG
from services.core import extras
from services.core.model.errors import PressworkError
from services.core.model.pipelines import PIPELINES
from services.core.processes import python

EXIT_FAILED, EXIT_USAGE = 1, 2
app = typer.Typer(
    cls=manual.Group, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG,
)  # fmt: skip
JOBS, RESULTS, CATALOGUES, MACHINE, OPERATIONS = "Jobs", "Results", "Catalogues", "This machine", "Operations"
submit.add_to(app, JOBS)
prompts.add_to(app, JOBS)
jobs.add_to(app, JOBS)
overview.add_to(app, JOBS)
top.add_to(app, JOBS)
waiting.add_to(app, JOBS)
opening.add_to(app, JOBS)
lanes.add_to(app, JOBS)
removal.add_to(app, JOBS)
downloads.add_to(app, RESULTS)
images.add_to(app, RESULTS)
marks.add_to(app, RESULTS)
exports.add_to(app, RESULTS)
actions.add_to(app, OPERATIONS)
app.add_typer(audit.app, name="audit", rich_help_panel=OPERATIONS)
app.add_typer(datasets.app, name="dataset", rich_help_panel=RESULTS)
app.add_typer(bulk.app, name="bulk", rich_help_panel=JOBS)
app.add_typer(schedules.app, name="schedules", rich_help_panel=JOBS)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=OPERATIONS)
app.add_typer(catalogues.app, name="catalogue", rich_help_panel=CATALOGUES)
app.add_typer(workers.app, name="workers", rich_help_panel=OPERATIONS)
tenant_deletion.add_to(tenants.app)
app.add_typer(tenants.app, name="tenants", rich_help_panel=OPERATIONS)
app.add_typer(retention.app, name="retention", rich_help_panel=OPERATIONS)
app.add_typer(storage.app, name="storage", rich_help_panel=OPERATIONS)
app.add_typer(backup.app, name="backup", rich_help_panel=OPERATIONS)
app.add_typer(metrics.app, name="metrics", rich_help_panel=OPERATIONS)
app.add_typer(keys.app, name="keys", rich_help_panel=OPERATIONS)
app.add_typer(policy.app, name="policy", rich_help_panel=OPERATIONS)
app.add_typer(bench.app, name="bench", rich_help_panel=OPERATIONS)
app.add_typer(model.app, name="model", rich_help_panel=OPERATIONS)
app.add_typer(ai100.app, name="ai100", rich_help_panel=OPERATIONS)

Home = Annotated[
    Path, typer.Option("--home", envvar="PRESSWORK_HOME", help="The folder with all data, logs and secrets.")
]
HOME = Path(".presswork")
KINDS = " or ".join(", ".join(PIPELINES).rsplit(", ", 1))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"presswork {metadata.version('presswork')}")
        raise typer.Exit


@app.callback()
def presswork(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prompts in, stored images out, in bulk."""


@app.command(rich_help_panel=MACHINE)
def up(
    home: Home = HOME,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers to run.")] = 1,
    pipeline: Annotated[
        str,
        typer.Option(metavar="NAME", envvar="PRESSWORK_PIPELINE", help=f"{KINDS}; PRESSWORK_MODEL_DIR names a model."),
    ] = "onnx",
    port: Annotated[int | None, typer.Option(envvar="PRESSWORK_PORT", help="The web server's port.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="A model to serve, by --workers workers of its own; may be given again."),
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            metavar="KIND:NUMBERS",
            envvar="PRESSWORK_DEVICES",
            help="A worker on each device: cuda:0-7, cuda:0,2 or qaic:0-3.",
        ),
    ] = "",
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="With --pipeline ai100: run a stand-in, on the CPU, for the card.")
    ] = False,
) -> None:
    """Run everything on this machine until Ctrl-C.

    Postgres, Valkey, an S3 server, the web server, the scheduler and workers, all in one folder.
    """
    if port is not None:
        os.environ["PRESSWORK_PORT"] = str(port)
    command = python("services.local", "up", "--home", str(home), "--workers", str(workers), "--pipeline", pipeline)
    command += [part for name in model or [] for part in ("--model", name)]
    command += ["--stand-in"] if stand_in else []
    command += ["--devices", devices]

    def run() -> int:
        options.devices(devices, "--devices")
        extras.require_stack(pipeline)
        os.execv(command[0], command)  # noqa: S606

    raise typer.Exit(_guarded(run))


@app.command(rich_help_panel=MACHINE)
def down(home: Home = HOME) -> None:
    """Stop what `presswork up` runs on this folder."""
    _local("down", home)


@app.command(rich_help_panel=MACHINE)
def status(home: Home = HOME) -> None:
    """Show which processes run on this folder."""
    _local("status", home)


@app.command(rich_help_panel=MACHINE)
def demo(
    home: Home = HOME,
    output: Annotated[Path, typer.Option(help="Where images, results and the contact sheet go.")] = Path("demo-output"),
    pipeline: Annotated[str, typer.Option(metavar="NAME", envvar="PRESSWORK_PIPELINE", help=f"{KINDS}.")] = "onnx",
) -> None:
    """Render 48 prompts and make a contact sheet.

    Uses the stack that is up on the folder, or starts one and stops it again; downloads and verifies every image.
    """
    from services.cli import demo as demonstration

    raise typer.Exit(_guarded(demonstration.run, home, output, pipeline))


@app.command("demo-catalogue", rich_help_panel=MACHINE)
def demo_catalogue(
    home: Home = HOME,
    output: Annotated[Path, typer.Option(help="Where the feed, pictures and the page go.")] = Path("demo-catalogue"),
    pipeline: Annotated[str, typer.Option(metavar="NAME", envvar="PRESSWORK_PIPELINE", help=f"{KINDS}.")] = "onnx",
) -> None:
    """Keep a shop's catalogue up to date for two nights.

    The first renders 60 products in three variants; the second what has changed. Ends with a page of before and after.
    """
    from services.cli import demo_catalogue as demonstration

    raise typer.Exit(_guarded(demonstration.run, home, output, pipeline))


@app.command(rich_help_panel=OPERATIONS)
def doctor() -> None:
    """Check the settings and reach every server."""
    from services.cli import doctor as checks

    raise typer.Exit(_guarded(checks.run))


@app.command(rich_help_panel=OPERATIONS)
def migrate(
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="Change nothing: wait so long for another process to have migrated it."
        ),
    ] = None,
) -> None:
    """Migrate the database to this program's schema.

    The role in DATABASE_URL must own the tables.
    """
    from services.core.db import database, schema_wait
    from services.core.settings import Settings

    def run() -> int:
        url = Settings.read().database_url
        if wait is not None:
            schema_wait.wait(url, wait)
        else:
            typer.echo(database.migrate(url))
        return 0

    raise typer.Exit(_guarded(run))


def _local(verb: str, home: Path) -> None:
    command = python("services.local", verb, "--home", str(home))
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _guarded(verb: Any, *arguments: Any) -> int:
    """Runs a verb and returns the exit code. Errors are printed as a sentence, without a traceback."""
    try:
        return int(verb(*arguments))
    except PressworkError as error:
        show.say(str(error))
        return EXIT_USAGE if isinstance(error, extras.MissingExtra) else EXIT_FAILED
    except KeyboardInterrupt:
        show.say("stopped")
        return 130


manual.dress(app)
