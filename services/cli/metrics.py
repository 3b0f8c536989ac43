"""`presswork metrics`: what Grafana and Prometheus need to show how Presswork goes, and to wake somebody up."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from services.cli import options, show
from services.cli.exits import Exit, guarded
from services.core.model.errors import PressworkError

app = typer.Typer(no_args_is_help=True, help="A dashboard for Grafana, and alerts for Prometheus.")
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file; without it, standard output.")]


def dashboard(output: Output = None) -> Exit:
    """Write a dashboard that Grafana imports."""
    from services.core.monitoring import dashboard as made

    return _write(json.dumps(made.dashboard(), indent=1) + "\n", output)


def alerts(
    output: Output = None,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="As a PrometheusRule.")] = False,
) -> Exit:
    """Write alerts as a file of rules for Prometheus. The runbook in the source says what to do about each."""
    from services.core.monitoring import alerts as made

    rules = made.rules()
    if kubernetes:
        head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "presswork"}}
        rules = {**head, "spec": rules}
    return _write(_yaml(rules), output)


def list_all(as_json: options.Json = False) -> Exit:
    """List every metric: which program tells it, and what it says."""
    from services.core.metrics import definitions

    if as_json:
        for metric in definitions.ALL:
            show.document({name: value for name, value in asdict(metric).items() if name != "buckets"})
        return Exit.OK
    table = Table(box=None, header_style="bold")
    for name in ("of", "metric", "says"):
        table.add_column(name, overflow="fold")
    for metric in definitions.ALL:
        labels = f"{{{', '.join(metric.labels)}}}" if metric.labels else ""
        table.add_row(metric.of, f"{metric.name}{labels}", metric.text)
    show.render(table)
    return Exit.OK


def _yaml(value: object) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, width=1000, allow_unicode=True)


def _write(text: str, output: Path | None) -> Exit:
    if output is None:
        typer.echo(text, nl=False)
        return Exit.OK
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PressworkError(f"{output} cannot be written ({error.strerror}); name another file.") from None
    show.say(f"wrote {output}")
    return Exit.OK


app.command("dashboard")(guarded(dashboard))
app.command("alerts")(guarded(alerts))
app.command("list")(guarded(list_all))
