"""`presswork webhooks`: what happens, sent to other programs, and what became of each message."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, Literal

import typer

from presswork_client import Client
from services.cli import options, show, webhook_listening, webhook_tables
from services.cli.exits import Exit, Usage, guarded
from services.cli.profile import connect

app = typer.Typer(no_args_is_help=True, help="Send what happens to other programs.")
TEST_SECONDS = 30.0
_Webhook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="A webhook's id: whe_...", show_default=False)]
_Delivery = Annotated[str, typer.Argument(metavar="DELIVERY", help="A delivery's id: whd_...", show_default=False)]
_Events = Annotated[
    list[str] | None,
    typer.Option(
        "--event", metavar="TYPE", help="job.completed, 'batch.*' or '*'; may be repeated.", show_default=False
    ),
]
_Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="What a job's labels must hold; may be repeated.", show_default=False
    ),
]
_Description = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What it is for.", show_default=False)
]  # fmt: skip


def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages go: https://...", show_default=False)],
    event: _Events = None,
    label: _Labels = None,
    description: _Description = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Make a webhook, and print the secret with which receivers verify messages.

    Without --event, messages say what has ended: jobs, batches and exports. While you develop, `presswork webhooks
    listen` brings messages to your own machine instead.
    """
    fields = _given(events=event, labels=options.pairs(label, "--label") or None, description=description)
    with connect(profile) as client:
        made = client.webhooks.create(url, **fields)
    if as_json:
        show.document(made)
        return
    show.render(webhook_tables.webhook(made))
    show.say(f"its secret is {made['secret']}; `presswork webhooks test {made['id']}` sends a message")


def ls(profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """List the webhooks, the oldest first."""
    with connect(profile) as client:
        found = client.webhooks.list()
    for one in found if as_json else ():
        show.document(one)
    if found and not as_json:
        show.render(webhook_tables.webhooks(found))
    if not found and not as_json:
        show.say("there is no webhook; `presswork webhooks create URL` makes one")


def show_one(
    webhook: _Webhook,
    secret: Annotated[bool, typer.Option("--secret", help="Print its secret, which takes an admin's key.")] = False,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Show a webhook, or its secret."""
    with connect(profile) as client:
        if secret:
            kept = client.webhooks.secret(webhook)
            if as_json:
                show.document(kept)
            else:
                show.render(kept["secret"])
            return
        found = client.webhooks.show(webhook)
    if as_json:
        show.document(found)
    else:
        show.render(webhook_tables.webhook(found))


def change(
    webhook: _Webhook,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Another address.", show_default=False)] = None,
    event: _Events = None,
    label: _Labels = None,
    description: _Description = None,
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Disabled, it gets nothing of what happens.", show_default=False),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Change a webhook. What is left out stays; `--label ''` takes all labels away."""
    labels = None if label is None else {} if label == [""] else options.pairs(label, "--label")
    fields = _given(url=url, events=event, labels=labels, description=description, enabled=enable)
    if not fields:
        raise Usage("Say what changes: --url, --event, --label, --description, --enable or --disable.")
    with connect(profile) as client:
        found = client.webhooks.change(webhook, **fields)
    if as_json:
        show.document(found)
    else:
        show.render(webhook_tables.webhook(found))


def rotate(webhook: _Webhook, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Make a new secret. For a day messages are signed with the old one, too."""
    with connect(profile) as client:
        found = client.webhooks.rotate(webhook)
    if as_json:
        show.document(found)
    else:
        show.say(f"the new secret is {found['secret']}; the one before signs too for a day")


def rm(webhook: _Webhook, profile: options.ProfileName = None, as_json: options.Json = False) -> None:
    """Delete a webhook with the log of its deliveries."""
    with connect(profile) as client:
        found = client.webhooks.delete(webhook)
    if as_json:
        show.document(found)
    else:
        show.say(f"deleted the webhook {webhook}")


def deliveries(
    webhook: _Webhook,
    delivery: Annotated[
        str | None, typer.Argument(metavar="[DELIVERY]", help="One of them, with its tries.", show_default=False)
    ] = None,
    status: Annotated[
        Literal["pending", "delivered", "failed"] | None, typer.Option(help="Only these.", show_default=False)
    ] = None,
    type: Annotated[  # noqa: A002  the option's own name
        str | None, typer.Option(metavar="TYPE", help="Only these, such as job.completed.", show_default=False)
    ] = None,
    limit: options.Limit = 20,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """List what was sent, newest first, or show one message with every try."""
    with connect(profile) as client:
        if delivery is not None:
            one = client.webhooks.delivery(webhook, delivery)
            if as_json:
                show.document(one)
            else:
                show.render(webhook_tables.delivery(one))
            return
        page = min(limit, 1000) or 1000
        found = list(
            islice(client.webhooks.deliveries(webhook, page=page, **_given(status=status, type=type)), limit or None)
        )
    for each in found if as_json else ():
        show.document(each)
    if found and not as_json:
        show.render(webhook_tables.deliveries(found))
    if not found and not as_json:
        show.say("nothing was sent")


def redeliver(
    webhook: _Webhook, delivery: _Delivery, profile: options.ProfileName = None, as_json: options.Json = False
) -> Exit:
    """Send a message again, and wait for the answer."""
    with connect(profile) as client:
        sent = client.webhooks.redeliver(webhook, delivery)
        return _wait(client, webhook, sent["id"], sent["tries"], as_json)


def send_test(webhook: _Webhook, profile: options.ProfileName = None, as_json: options.Json = False) -> Exit:
    """Send a test message, and wait for the answer."""
    with connect(profile) as client:
        sent = client.webhooks.test(webhook)
        return _wait(client, webhook, sent["id"], sent["tries"], as_json)


def listen(
    forward: Annotated[
        str,
        typer.Option(metavar="URL", help="Where your program listens, on this machine say.", show_default=False),
    ],
    event: _Events = None,
    secret: Annotated[
        str | None,
        typer.Option(metavar="whsec_...", help="What messages are signed with; without, one of the key's own."),
    ] = None,
    profile: options.ProfileName = None,
    as_json: options.Json = False,
) -> None:
    """Bring signed messages to a program while you develop it, until Ctrl-C.

    It takes no webhook: what happens from now on is asked for, signed here, and sent to the program.
    """
    webhook_listening.listen(forward, event or ["*"], secret, profile, as_json)


def _wait(client: Client, webhook: str, delivery: str, tries: int, as_json: bool) -> Exit:
    """Until a try more is recorded."""
    end = time.monotonic() + TEST_SECONDS
    found = client.webhooks.delivery(webhook, delivery)
    while found["tries"] <= tries and time.monotonic() < end:
        time.sleep(0.2)
        found = client.webhooks.delivery(webhook, delivery)
    if as_json:
        show.document(found)
    elif found["tries"] <= tries:
        show.say("it has not been sent yet: is a scheduler up?")
    else:
        show.render(webhook_tables.delivery(found))
    return Exit.OK if found["status"] == "delivered" else Exit.FAILED


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


_COMMANDS: dict[str, Callable[..., Any]] = {
    "create": create, "list": ls, "show": show_one, "set": change, "rotate": rotate, "rm": rm,
    "deliveries": deliveries, "redeliver": redeliver, "test": send_test, "listen": listen,
}  # fmt: skip
for _name, _verb in _COMMANDS.items():
    app.command(_name)(guarded(_verb))
