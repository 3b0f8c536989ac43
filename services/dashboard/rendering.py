"""Templates become pages here: every value is escaped, and every page has the same policy."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from services.api import dependencies
from services.dashboard import files, policy, words
from services.dashboard.access import Visitor

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.filters |= words.FILTERS


def page(
    request: Request,
    template: str,
    *,
    visitor: Visitor | None = None,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """`root` in templates is what stands before every path: nothing, or the path of PRESSWORK_PUBLIC_URL."""
    root = _root(request)
    text = _environment.get_template(template).render(
        root=root,
        base=base(request),
        static=lambda name: root + files.address(name),
        visitor=visitor,
        path=request.url.path,
        version=request.app.version,
        **values,
    )
    return HTMLResponse(text, status, policy.HEADERS | (headers or {}))


def trouble(
    request: Request, status: int, title: str, sentence: str, headers: dict[str, str] | None = None
) -> HTMLResponse:
    """A page that says what is wrong, to whoever is signed in with the way to the others."""
    visitor = getattr(request.state, "visitor", None)
    return page(
        request, "trouble.html", visitor=visitor, status=status, headers=headers, title=title, sentence=sentence
    )


def base(request: Request) -> str:
    """The address of this server as its users know it."""
    return dependencies.base_url(request.app.state.context.settings, request)


def address(request: Request, path: str) -> str:
    """A path of ours as the browser asks for it."""
    return _root(request) + path


def _root(request: Request) -> str:
    base = dependencies.base_url(request.app.state.context.settings, request)
    return urlsplit(base).path.rstrip("/")


def is_secure(request: Request) -> bool:
    """Whether the browser reaches us by https."""
    return dependencies.base_url(request.app.state.context.settings, request).startswith("https:")
