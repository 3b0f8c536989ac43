"""What may be asked of webhooks: the fields, their limits and the checks. Each refusal is one sentence."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from services.core.model.body import Body
from services.core.model.requests import Labels
from services.core.webhooks import types

LONGEST_URL = 2_048


def _patterns(given: list[str]) -> list[str]:
    if not all(map(types.is_pattern, given)):
        raise ValueError("an unknown type")
    return list(dict.fromkeys(given))


def _schema(schema: dict[str, Any]) -> None:
    schema["items"] = {"type": "string", "enum": sorted({*types.TYPES, *_WILD})}


_WILD = {"*", *(f"{name.partition('.')[0]}.*" for name in types.TYPES)}
Events = Annotated[
    list[str],
    Field(min_length=1, max_length=types.MOST, json_schema_extra=_schema),
    AfterValidator(_patterns),
]
ALLOWED = {
    "url": "an address that begins with https://, in ASCII, of up to 2,048 characters",
    "description": "up to 200 printable characters",
    "events": f'1 to {types.MOST} types such as "job.completed", all of a noun ("batch.*") or all ("*"); '
    "the README of the API lists them",
    "labels": "an object of at most 16 texts: what the labels of a job must hold",
    "enabled": "true or false",
}
Url = Annotated[str, Field(max_length=LONGEST_URL)]
Description = Annotated[str, Field(max_length=200, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]


class WebhookRequest(Body):
    """An endpoint: where messages go, and which."""

    ALLOWED: ClassVar = ALLOWED
    url: Url
    description: Description = ""
    events: Events = Field(default_factory=lambda: list(types.USUAL))
    labels: Labels = Field(default_factory=dict)


class WebhookChanges(Body):
    """What is left out stays. What happens while an endpoint is disabled is not sent to it later."""

    ALLOWED: ClassVar = ALLOWED
    url: Url = None  # type: ignore[assignment]
    description: Description = None  # type: ignore[assignment]
    events: Events = None  # type: ignore[assignment]
    labels: Labels = None  # type: ignore[assignment]
    enabled: bool = None  # type: ignore[assignment]
