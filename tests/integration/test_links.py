"""What links begin with: never what a client merely says, in no answer and in nothing that is stored."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core.model import ids
from services.core.settings import Settings
from tests import factories
from tests.web import Api, serving

LOOPBACK = (ip_network("127.0.0.1"),)
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a mug"}}\n'


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@contextmanager
def served_with(api: Api, **changes: Any) -> Iterator[httpx.Client]:
    """The API once more, with other settings."""
    with serving(dataclasses.replace(api.settings, **changes)) as url:
        headers = {"Authorization": f"Bearer {api.key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            yield http


def drawn(api: Api) -> str:
    """A job whose image is done."""
    job = str(api.submit({"prompt": "a mug"})["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    factories.settle(api.database, claim, stored=factories.stored(claim))
    return job


def link(http: httpx.Client, job: str, **headers: str) -> str:
    """The beginning of the image's link, as this request gets it."""
    answer = http.get(
        f"/v1/jobs/{job}/images", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return str(answer.json()["data"][0]["url"]).partition("/v1/")[0]


def stored(api: Api, http: httpx.Client, host: str) -> str:
    """What the links in the files of a batch begin with, if the client names that host."""
    file = http.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    made = http.post("/v1/batches", json=asked, headers={"Host": host})
    assert made.status_code == 200, made.text
    with api.database.begin_system() as connection:
        found = connection.execute(
            text("SELECT base_url FROM jobs WHERE id = :id"), {"id": ids.parse_job(made.json()["job_id"])}
        )
        return str(found.scalar_one())


def test_a_host_that_is_not_ours_gets_into_no_link_and_into_nothing_stored(api: Api) -> None:
    job = drawn(api)
    port = api.address[1]
    for host in (
        "evil.example",
        "evil.example:80",
        "evil.example/x?",
        "localhost.evil.example",
        "a b",
        "[::1",
        "@localhost",
    ):
        assert link(api.http, job, Host=host) == api.url
    assert stored(api, api.http, "evil.example") == api.url
    assert link(api.http, job, Host=f"LOCALHOST:{port}") == f"http://localhost:{port}"
    assert stored(api, api.http, f"localhost:{port}") == f"http://localhost:{port}"


def test_the_public_address_stands_in_every_link(api: Api) -> None:
    job = drawn(api)
    with served_with(api, public_url="https://pictures.example/api/") as http:
        for host in ("evil.example", "localhost", "pictures.example"):
            assert link(http, job, Host=host) == "https://pictures.example/api"
        assert stored(api, http, "evil.example") == "https://pictures.example/api"


def test_once_hosts_are_listed_others_are_refused_but_for_what_watches_the_process(api: Api) -> None:
    job = drawn(api)
    with served_with(api, allowed_hosts=frozenset({"pictures.example", "*.inner", "one.port:8000"})) as http:
        for host in ("pictures.example", "Pictures.Example:8443", "a.b.inner", "one.port:8000"):
            assert link(http, job, Host=host) == f"http://{host.lower()}"
        for host in (
            "evil.example",
            "localhost",
            "inner",
            "xinner",
            "one.port:80",
            "pictures.example.evil.example",
            "",
        ):
            refused = http.get(f"/v1/jobs/{job}", headers={"Host": host})
            assert (refused.status_code, refused.json()["error"]["code"]) == (421, "unknown_host")
            assert http.get("/livez", headers={"Host": host}).status_code == 200


def test_what_a_proxy_says_counts_only_if_its_address_is_trusted(api: Api) -> None:
    job = drawn(api)
    said = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "pictures.example"}
    assert link(api.http, job, **said) == api.url
    listed = frozenset({"pictures.example", "127.0.0.1"})
    with served_with(api, trusted_proxies=(ip_network("192.0.2.0/24"),), allowed_hosts=listed) as http:
        assert link(http, job, **said).startswith("http://127.0.0.1:")
    with served_with(api, trusted_proxies=LOOPBACK, allowed_hosts=listed) as http:
        assert link(http, job, **said) == "https://pictures.example"
        nearest = said | {"X_Forwarded_Proto": "gopher, https", "X_Forwarded_Host": "evil.example, pictures.example"}
        assert link(http, job, **nearest) == "https://pictures.example"
        refused = http.get(f"/v1/jobs/{job}", headers={"X-Forwarded-Host": "evil.example"})
        assert refused.status_code == 421
    with served_with(api, trusted_proxies=LOOPBACK) as http:
        assert link(http, job, X_Forwarded_Proto="https").startswith("https://127.0.0.1:")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PRESSWORK_PUBLIC_URL", "pictures.example"), ("PRESSWORK_PUBLIC_URL", "https://"),
        ("PRESSWORK_PUBLIC_URL", "https://user:word@pictures.example"),
        ("PRESSWORK_PUBLIC_URL", "https://pictures.example/?a"),
        ("PRESSWORK_ALLOWED_HOSTS", "https://pictures.example"), ("PRESSWORK_ALLOWED_HOSTS", "a b"),
        ("PRESSWORK_ALLOWED_HOSTS", "*"), ("PRESSWORK_TRUSTED_PROXIES", "proxy"),
        ("PRESSWORK_TRUSTED_PROXIES", "10.0.0.1/8"),
    ],
)  # fmt: skip
def test_an_address_that_no_link_could_begin_with_is_refused_at_start(variable: str, value: str) -> None:
    with pytest.raises(Exception, match=f"^{variable} is .*must"):
        Settings.read({"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x", variable: value})
