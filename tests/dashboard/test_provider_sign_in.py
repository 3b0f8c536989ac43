"""Signing in by OpenID Connect, with a real provider in a process of its own."""

import dataclasses
import html
import os
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser

from services.api import feed
from services.core.model.errors import SettingsError
from services.core.settings import Settings
from services.core.tenants import sessions
from tests import oidc_provider
from tests.pages import House
from tests.processes import Process
from tests.waiting import until
from tests.web import serving

ALICE = {"sub": "1", "email": "alice@example.org", "groups": ["staff"]}


@dataclasses.dataclass
class Provider:
    url: str

    def put(self, path: str, found: dict[str, Any]) -> None:
        assert httpx.put(f"{self.url}/{path}", json=found, trust_env=False).status_code == 200


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/keys", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    port = free_port()
    log = tmp_path_factory.mktemp("provider") / "log"
    running = Process("tests.oidc_provider", dict(os.environ), log, str(port))
    provider = Provider(f"http://127.0.0.1:{port}")
    try:
        until(lambda: answers(provider.url))
        yield provider
    finally:
        running.stop()


@pytest.fixture
def provider(process: Provider) -> Provider:
    process.put("person", ALICE)
    process.put("faults", {})
    return process


def settings(house: House, provider: Provider, **more: Any) -> Settings:
    given = {
        "oidc_issuer": provider.url,
        "oidc_client_id": oidc_provider.CLIENT,
        "oidc_client_secret": oidc_provider.SECRET,
        "oidc_scopes": {"staff": ("view", "submit"), "ops": ("operate",)},
        "oidc_tenant_claim": "tenant",
    }
    return dataclasses.replace(house.api.settings, **given | more)


@pytest.fixture
def browser(house: House, provider: Provider) -> Iterator[httpx.Client]:
    """A browser at a server where the provider is configured; Alice is of the house's tenant."""
    with house.api.database.begin_system() as connection:
        name = connection.exec_driver_sql("SELECT name FROM tenants WHERE id = %s", (house.tenant,)).scalar_one()
    provider.put("person", ALICE | {"tenant": name})
    with (
        serving(settings(house, provider)) as url,
        httpx.Client(base_url=url, timeout=20, trust_env=False, follow_redirects=True) as http,
    ):
        yield http


def sentence(answer: httpx.Response) -> str:
    [found] = re.findall(r'<p class="lead">(.*?)</p>', answer.text, re.DOTALL)
    return html.unescape(str(found))


def test_whoever_the_provider_knows_is_signed_in_and_back_where_they_were(house: House, browser: httpx.Client) -> None:
    job = house.submit({"prompt": "a", "size": "64x64"})
    page = browser.get(f"/jobs/{job}")
    [link] = re.findall(r'href="(/sign-in/provider\?[^"]+)"', page.text)
    found = browser.get(html.unescape(link))
    assert (found.status_code, urlsplit(str(found.url)).path) == (200, f"/jobs/{job}")
    assert "alice@example.org" in found.text and f"/jobs/{job}/actions/cancel" not in found.text
    assert browser.get("/settings/keys").status_code == 403
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', found.text))
    assert browser.post("/jobs/" + job + "/actions/cancel", data={"csrf": token}).status_code == 403
    page = browser.post("/sign-out", data={"csrf": token})
    assert page.url.path == "/sign-in" and browser.get("/jobs").url.path == "/sign-in"


def test_what_somebody_does_is_theirs_in_the_action_log(
    house: House, provider: Provider, browser: httpx.Client
) -> None:
    job = house.submit({"prompt": "a", "size": "64x64"})
    with house.api.database.begin_system() as connection:
        name = connection.exec_driver_sql("SELECT name FROM tenants WHERE id = %s", (house.tenant,)).scalar_one()
    provider.put("person", ALICE | {"groups": ["staff", "ops"], "tenant": name})
    page = browser.get("/sign-in/provider")
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', page.text))
    browser.post(f"/jobs/{job}/actions/pause", data={"csrf": token})
    house.tick()
    [act] = house.http.get("/v1/actions?verb=job.paused").json()["data"]
    assert (act["actor"], act["subject"]) == ("user/alice@example.org", job)
    assert "<strong>alice@example.org</strong> paused" in browser.get("/settings/log").text


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "another audience": ({"claims": {"aud": "other"}}, 403, "for another client"),
    "several audiences": ({"claims": {"aud": ["presswork", "other"], "azp": "other"}}, 403, "for another client"),
    "another issuer": ({"claims": {"iss": "http://other"}}, 403, "another issuer"),
    "another nonce": ({"claims": {"nonce": "other"}}, 403, "another sign-in"),
    "expired": ({"ages": {"exp": -120, "iat": -400}}, 403, "has expired"),
    "from the future": ({"ages": {"iat": 600, "exp": 900}}, 403, "from the future"),
    "a key of a stranger": ({"key": "stranger"}, 403, "not signed by one of its keys"),
    "a shared secret as key": ({"key": "client"}, 403, "not signed by one of its keys"),
    "no ID token": ({"no_id_token": True}, 502, "sent no ID token"),
    "refused there": ({"error": "access_denied"}, 403, "has not signed you in (access_denied)"),
    "hostile": ({"error": "<script>x</script>"}, 403, "has not signed you in (an error)"),
    "no group": ({"claims": {"groups": ["guests"]}}, 403, "alice@example.org may do nothing here"),
    "no groups at all": ({"claims": {"groups": None}}, 403, "may do nothing here"),
    "an unknown tenant": ({"claims": {"tenant": "nobody's"}}, 403, "names no tenant"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_way_to_fail_is_one_sentence_and_no_session(
    provider: Provider, browser: httpx.Client, fault: str
) -> None:
    faults, status, words = FAULTS[fault]
    provider.put("faults", faults)
    answer = browser.get("/sign-in/provider?next=/jobs")
    assert answer.status_code == status, answer.text
    assert words in sentence(answer), sentence(answer)
    assert "presswork_session" not in browser.cookies
    assert oidc_provider.SECRET not in answer.text
    provider.put("faults", {})
    assert browser.get("/sign-in/provider").status_code == 200


def test_clocks_may_differ_by_less_than_a_minute(provider: Provider, browser: httpx.Client) -> None:
    provider.put("faults", {"ages": {"iat": 40, "exp": 340}})
    assert browser.get("/sign-in/provider").status_code == 200
    browser.cookies.clear()
    provider.put("faults", {"ages": {"iat": -340, "exp": -40}})
    assert browser.get("/sign-in/provider").status_code == 200


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(browser: httpx.Client) -> None:
    callback = "/sign-in/provider/callback?code=a&state=b"
    assert "begun in another browser" in sentence(browser.get(callback))
    browser.get("/sign-in/provider", follow_redirects=False)
    assert "begun elsewhere" in sentence(browser.get(callback))
    browser.cookies.set("presswork_provider", "e30=.00")
    assert browser.get(callback).status_code == 400
    assert "presswork_session" not in browser.cookies


def test_a_code_holds_once(browser: httpx.Client) -> None:
    asked = browser.get("/sign-in/provider", follow_redirects=False)
    back = httpx.get(asked.headers["Location"], trust_env=False).headers["Location"]
    cookie = browser.cookies["presswork_provider"]
    assert browser.get(back).status_code == 200
    browser.cookies.clear()
    browser.cookies.set("presswork_provider", cookie)
    again = browser.get(back)
    assert again.status_code == 403 and "refuses the code (invalid_grant)" in sentence(again)


def test_a_provider_that_is_away_or_another_is_said_so(house: House, provider: Provider) -> None:
    for issuer, status, words in (
        (f"http://127.0.0.1:{free_port()}", 503, "cannot be reached"),
        (provider.url.replace("127.0.0.1", "localhost"), 502, "PRESSWORK_OIDC_ISSUER is wrong"),
    ):
        with serving(settings(house, provider, oidc_issuer=issuer)) as url:
            answer = httpx.get(f"{url}/sign-in/provider", trust_env=False)
            assert (answer.status_code, words in sentence(answer)) == (status, True), answer.text
            assert httpx.get(f"{url}/sign-in", trust_env=False).status_code == 200


def test_where_no_provider_is_configured_there_is_no_such_way(house: House) -> None:
    assert "/sign-in/provider" not in house.browser.get("/sign-in").text
    assert house.browser.get("/sign-in/provider").status_code == 404


def test_a_stream_of_somebody_ends_with_their_session(
    house: House, browser: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    browser.get("/sign-in/provider")
    with browser.stream("GET", "/live") as stream:
        pieces = stream.iter_text()
        assert "retry" in next(pieces)
        job = house.submit({"prompt": "a", "size": "64x64"})
        until(lambda: job in next(pieces))
        with house.api.database.begin_system() as connection:
            sessions.end(connection, browser.cookies["presswork_session"])
        assert "signed_out" in "".join(pieces)


def test_the_button_signs_in_in_a_browser(chromium: Browser, browser: httpx.Client) -> None:
    place = f"{str(browser.base_url).rstrip('/')}/jobs"
    page = chromium.new_context().new_page()
    page.goto(place)
    page.get_by_role("link", name="Sign in with 127.0.0.1").click()
    page.wait_for_url(place)
    page.get_by_text("alice@example.org").first.wait_for()
    page.context.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PRESSWORK_OIDC_SCOPES", "staff"),
        ("PRESSWORK_OIDC_SCOPES", "staff=root"),
        ("PRESSWORK_OIDC_ISSUER", "http://login.example.org"),
        ("PRESSWORK_OIDC_ISSUER", "login"),
    ],
)
def test_settings_that_make_no_sense_are_refused(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.read({"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x", variable: value})
