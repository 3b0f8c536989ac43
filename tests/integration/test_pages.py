"""What a browser sees at the server's address, and that the document says what the server does."""

import base64
import dataclasses
import hashlib
import re
from typing import Any

import httpx
import pytest

from tests.web import Api, serving


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@pytest.mark.parametrize("path", ["/docs", "/docs?utm_source=mail"])
def test_a_page_needs_no_key_no_script_and_no_other_host(api: Api, path: str) -> None:
    page = httpx.get(f"{api.url}{path}")
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    [style] = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';") and "script" not in policy
    assert "<script" not in page.text and " style=" not in page.text and "@import" not in style and "url(" not in style
    for link in re.findall(r'(?:href|src)="([^"]*)"', page.text):
        assert link.startswith((f"{api.url}/", "#", "data:,"))
        if link.startswith(api.url):
            assert httpx.get(link, follow_redirects=True).status_code == 200


def test_pages_and_document_name_the_address_that_clients_use(api: Api) -> None:
    assert httpx.get(f"{api.url}/openapi.json").json()["servers"][0]["url"] == api.url
    with serving(dataclasses.replace(api.settings, public_url="https://pictures.example/api/")) as url:
        document = httpx.get(f"{url}/openapi.json").json()
        assert [server["url"] for server in document["servers"]] == ["https://pictures.example/api"]
        for path in ("/sign-in", "/docs"):
            page = httpx.get(f"{url}{path}", headers={"Host": "evil.example"}).text
            assert "evil.example" not in page
            assert '"https://pictures.example/api/openapi.json"' in page


def test_a_body_may_have_as_many_bytes_as_the_document_says(api: Api) -> None:
    """Only the length is sent: it alone decides."""
    document = httpx.get(f"{api.url}/openapi.json").json()
    ids = {"job_id": api.submit()["id"], "number": 0}
    ids["upload_id"] = api.http.post(
        "/v1/uploads", json={"filename": "a", "purpose": "batch", "bytes": 9, "mime_type": "text/plain"}
    ).json()["id"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                address = re.sub(r"\{(\w+)\}", lambda found: str(ids.get(found[1], "none")), path)
                for more, refused in ((0, False), (1, True)):
                    status = answered(api, method.upper(), address, media, content["x-max-bytes"] + more)
                    assert (status == 413) is refused, (path, media, status)


def answered(api: Api, method: str, path: str, media: str, length: int) -> int:
    """The status for a body of which the sender says only how long it would be. 100: it is to be sent."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nExpect: 100-continue\r\n"
        f"Content-Type: {media}; boundary=x\r\nContent-Length: {length}\r\n\r\n"
    )
    with api.connect() as connection:
        connection.sendall(head.encode())
        answer: Any = connection.recv(65536)
    return int(answer.split(b" ", 2)[1])
