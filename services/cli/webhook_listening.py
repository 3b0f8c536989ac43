"""Brings messages to a program on this machine: asked for, signed here, and sent. Messages that it does not take are
printed, and not sent again."""

import base64
import hmac
import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from presswork_client import Client, WebhookMessage
from services.cli import profile, show
from services.cli.exits import Usage
from services.cli.follow import through_outages
from services.core.model import strict_json
from services.core.webhooks import signing, types

POLL_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
_SHOWN = 200  # of an answer


def listen(forward: str, events: list[str], secret: str | None, name: str | None, as_json: bool) -> None:
    """Goes on until Ctrl-C. Raises Usage."""
    parts = urlsplit(forward)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Usage("--forward must be the address of a program, such as http://127.0.0.1:3000/hook.")
    for pattern in events:
        if not types.is_pattern(pattern):
            raise Usage(
                f"--event is {strict_json.describe(pattern)}; it can be a type, such as job.completed, 'job.*' or '*'."
            )
    chosen = secret or own_secret(profile.find(name).api_key)
    if not is_secret(chosen):
        raise Usage("--secret must be whsec_ and base64, as `presswork webhooks show WEBHOOK --secret` prints it.")
    place: list[int] = []
    with profile.connect(name) as client, httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as program:
        show.say(f"messages go to {forward}, signed with {chosen}; Ctrl-C ends")
        for message in through_outages(lambda: _messages(client, place)):
            if message is not None and types.fits(events, message["type"]):
                _print(message, _send(program, forward, chosen, message), as_json)


def own_secret(key: str) -> str:
    """The same for each run with that API key, which it does not tell."""
    return signing.PREFIX + base64.b64encode(hmac.digest(key.encode(), b"webhooks listen", "sha256")).decode()


def is_secret(text: str) -> bool:
    try:
        return text.startswith(signing.PREFIX) and len(base64.b64decode(text[len(signing.PREFIX) :], validate=True)) > 0
    except ValueError:
        return False


def _messages(client: Client, place: list[int]) -> Iterator[WebhookMessage | None]:
    """Each message once, and None while there is none; `place` keeps where to go on after an outage."""
    while True:
        found = client.webhooks.messages(place[0] if place else None)
        yield from found["data"]
        is_behind = bool(place) and found["after"] > place[0]
        place[:] = [found["after"]]
        if not is_behind:
            yield None
            time.sleep(POLL_SECONDS)


def _send(program: httpx.Client, url: str, secret: str, message: WebhookMessage) -> dict[str, Any]:
    body = message["body"].encode()
    headers = {"Content-Type": "application/json", "User-Agent": "presswork-webhooks"}
    headers |= signing.headers([secret], message["id"], int(time.time()), body)
    began = time.monotonic()
    try:
        answer = program.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        status, said = None, str(error) or type(error).__name__
    else:
        status, said = answer.status_code, answer.text[:_SHOWN]
    return {"status": status, "answer": said, "milliseconds": round((time.monotonic() - began) * 1000)}


def _print(message: WebhookMessage, sent: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document({"id": message["id"], "type": message["type"], "body": message["body"], **sent})
        return
    thing = json.loads(message["body"])["data"]["id"]
    status = sent["status"] or "no answer"
    is_well = sent["status"] is not None and 200 <= sent["status"] < 300
    more = "" if is_well or not sent["answer"] else f": {' '.join(sent['answer'].split())}"
    at = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005  the clock on the wall
    show.render(f"{at}  {message['type']}  {thing}  -> {status} in {sent['milliseconds']:,} ms{more}")
