"""The files that pages are made with: scripts and styles, at addresses that change with their content.

One digest of all files stands in every address, so that one script finds another by a relative address. While two
releases run side by side a page of one may ask the other for its files: then they are sent, and not kept.
"""

import gzip
import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from services.core.model.errors import NotFound
from services.dashboard import policy

router = APIRouter()
_FOLDER = Path(__file__).with_name("static")
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
_YEAR = "public, max-age=31536000, immutable"
FILES = {
    path.relative_to(_FOLDER).as_posix(): path.read_bytes()
    for path in sorted(_FOLDER.rglob("*"))
    if path.suffix in _TYPES
}
_SMALL = {name: gzip.compress(content, mtime=0) for name, content in FILES.items()}
DIGEST = hashlib.sha256(b"\0".join(part for name in FILES for part in (name.encode(), FILES[name]))).hexdigest()[:16]


def address(name: str) -> str:
    """The path of a file, below the server's address."""
    assert name in FILES, name
    return f"/static/{DIGEST}/{name}"


@router.get("/static/{digest}/{name:path}")
async def read_file(digest: str, name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
    if name not in FILES:
        raise NotFound("There is no such file.")
    keep = _YEAR if digest == DIGEST else "no-store"
    # A script that runs as a worker obeys the policy of its own answer.
    headers = {"Cache-Control": keep, "Content-Security-Policy": policy.POLICY, "Vary": "Accept-Encoding"}
    content = FILES[name]
    if "gzip" in accept_encoding:
        content, headers["Content-Encoding"] = _SMALL[name], "gzip"
    return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])
