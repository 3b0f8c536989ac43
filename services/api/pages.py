"""The documentation of the API as a page, and the OpenAPI document.

The page is one file: it needs no script, no other host and no key.
"""

import base64
import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from services.api import dependencies, reference
from services.api.dependencies import ContextDep
from services.api.errors import JsonResponse

router = APIRouter()
_STYLE = Path(__file__).with_name("pages.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/docs")
async def show_reference(request: Request, context: ContextDep) -> HTMLResponse:
    """The OpenAPI document as a page."""
    base = dependencies.base_url(context.settings, request)
    return _page("Presswork: the API", reference.page(request.app.openapi(), base))


@router.get("/openapi.json")
async def show_document(request: Request, context: ContextDep) -> JsonResponse:
    base = dependencies.base_url(context.settings, request)
    return JsonResponse(request.app.openapi() | {"servers": [{"url": base, "description": "This server."}]})


def _page(title: str, body: str) -> HTMLResponse:
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>{body}\n'
        "</body>\n</html>\n"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})
