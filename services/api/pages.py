"""What a browser sees: the first page, the documentation of the API, and the OpenAPI document.

The pages are made here, of one file each: they need no script, no other host and no key.
"""

import base64
import hashlib
from html import escape
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
_CURL = """export PRESSWORK_API_KEY=pw_...
curl -s {base}/v1/jobs \\
  -H "Authorization: Bearer $PRESSWORK_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{"images": [{"prompt": "a red mug on a wooden floor", "n": 4}]}'"""
_PYTHON = """from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key="pw_...")
answer = client.images.generate(prompt="a teal bottle", n=2)
print([image.url for image in answer.data])"""


@router.get("/")
async def show_home(request: Request, context: ContextDep) -> HTMLResponse:
    base = dependencies.base_url(context.settings, request)
    return _page("Presswork", _home(escape(base), request.app.version))


@router.get("/docs")
async def show_reference(request: Request, context: ContextDep) -> HTMLResponse:
    """The OpenAPI document as a page."""
    base = dependencies.base_url(context.settings, request)
    return _page("Presswork: the API", reference.page(request.app.openapi(), base))


@router.get("/openapi.json")
async def show_document(request: Request, context: ContextDep) -> JsonResponse:
    base = dependencies.base_url(context.settings, request)
    return JsonResponse(request.app.openapi() | {"servers": [{"url": base, "description": "This server."}]})


def _home(base: str, version: str) -> str:
    return f"""
<main class="home">
<h1>Presswork</h1>
<p>Presswork turns prompts into stored images, in bulk. This is the web server of one installation, version
{version}.</p>
<ul class="places">
<li><a href="{base}/docs">The API</a> every route, with its limits and an example</li>
<li><a href="{base}/openapi.json">openapi.json</a> the same for programs that write clients</li>
<li><a href="{base}/readyz">Readiness</a> whether a job would be accepted and rendered now</li>
<li><a href="{base}/metrics">Metrics</a> for Prometheus</li>
</ul>
<h2>Submit a job</h2>
<p><code>presswork keys create NAME</code> prints an API key. With curl:</p>
<pre>{escape(_CURL).replace("{base}", base)}</pre>
<p>With the stock <code>openai</code> client:</p>
<pre>{escape(_PYTHON).replace("{base}", base)}</pre>
<h2>Watch your jobs</h2>
<p>There is no dashboard yet. <code>presswork ls</code>, <code>presswork show JOB</code> and
<code>presswork submit FILE --watch</code> show progress in a terminal, and <a href="{base}/docs#show_job">the API</a>
shows it to programs.</p>
</main>"""


def _page(title: str, body: str) -> HTMLResponse:
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>{body}\n'
        "</body>\n</html>\n"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})
