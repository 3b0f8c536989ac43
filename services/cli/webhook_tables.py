"""Webhooks and their deliveries, for people."""

import json
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from presswork_client import Webhook, WebhookDelivery, WebhookDeliveryDetails
from services.cli import units

_STYLES = {"delivered": "green", "pending": "yellow", "failed": "red"}
_REASONS = {"by_user": "disabled", "gone": "disabled: it answered 410", "failing": "disabled: it failed for days"}


def webhooks(found: Iterable[Webhook]) -> Table:
    table = _table()
    for name in ("WEBHOOK", "STATE", "URL"):
        table.add_column(name, no_wrap=name == "WEBHOOK", overflow="fold")
    for one in found:
        table.add_row(one["id"], _state(one), Text(one["url"]))
    return table


def webhook(found: Webhook) -> RenderableType:
    rows = {
        "url": found["url"],
        "description": found["description"],
        "state": str(_state(found)),
        "failing since": units.local(found["failing_since"]) if found["failing_since"] else "",
        "events": "  ".join(found["events"]),
        "labels": "  ".join(f"{name}={value}" for name, value in found["labels"].items()),
        "old secret until": units.local(found["old_secret_until"]) if found["old_secret_until"] else "",
    }
    return Group(Text(found["id"], style="bold"), _grid(rows))


def deliveries(found: Iterable[WebhookDelivery]) -> Table:
    table = _table()
    for name in ("DELIVERY", "AT", "TYPE", "STATUS", "TRIES", "LAST"):
        table.add_column(name, no_wrap=name in ("DELIVERY", "AT"), overflow="fold")
    for one in found:
        last = one["error"] or one["response_status"] or ""
        table.add_row(
            one["id"],
            units.local(one["created_at"]),
            Text(one["type"]),
            _status(one),
            str(one["tries"]),
            Text(str(last)),
        )
    return table


def delivery(found: WebhookDeliveryDetails) -> RenderableType:
    rows = {
        "type": found["type"],
        "webhook-id": found["message_id"],
        "status": found["status"],
        "next try": units.local(found["next_try_at"]) if found["next_try_at"] else "",
        "message": json.dumps(found["message"], ensure_ascii=False),
    }
    table = _table()
    for name in ("TRY", "AT", "TOOK", "ANSWER"):
        table.add_column(name, overflow="fold", no_wrap=name == "AT")
    for one in found["log"]:
        answer = f"{one['response_status'] or ''} {one['error'] or one['answer'] or ''}".strip()
        table.add_row(str(one["number"]), units.local(one["at"]), f"{one['milliseconds']:,} ms", Text(answer))
    return Group(Text(found["id"], style="bold"), _grid(rows), Text(""), table)


def _state(found: Webhook) -> Text:
    if not found["enabled"]:
        return Text(_REASONS.get(found["reason"] or "", "disabled"), style="magenta")
    return Text("failing", style="red") if found["failures"] else Text("enabled", style="green")


def _status(found: WebhookDelivery) -> Text:
    return Text(found["status"], style=_STYLES[found["status"]])


def _grid(rows: dict[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            grid.add_row(name, Text(text))
    return grid


def _table() -> Table:
    return Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
