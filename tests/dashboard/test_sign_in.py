"""Signing in: a key exchanged for a cookie, which ends when it is signed out, with its key, and after its days."""

import dataclasses
import hashlib
import re
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.tenants import api_keys, sessions
from services.dashboard.pages.sign_in import place
from tests.pages import House, Tab
from tests.web import serving


def test_a_key_is_exchanged_for_a_cookie_that_no_script_reads(house: House) -> None:
    answer = house.post("/sign-in", key=house.key, page="/sign-in")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    [cookie] = [given for given in answer.headers.get_list("set-cookie") if given.startswith("presswork_session=")]
    assert {"HttpOnly", "Path=/", f"Max-Age={sessions.SECONDS}", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    secret = house.browser.cookies["presswork_session"]
    with house.api.database.begin_system() as connection:
        [row] = connection.execute(
            text("SELECT s.* FROM sessions s JOIN api_keys k ON k.id = s.key_id WHERE tenant_id = :tenant"),
            {"tenant": house.tenant},
        )
    assert bytes(row.sha256) == hashlib.sha256(secret.encode()).digest()
    assert house.browser.get("/").status_code == 200


def test_over_https_the_cookie_is_secure_and_a_path_before_ours_is_kept(house: House) -> None:
    settings = dataclasses.replace(house.api.settings, public_url="https://pictures.example/press/")
    with serving(settings) as url, httpx.Client(base_url=url) as browser:
        page = browser.get("/sign-in?next=/jobs")
        assert 'action="/press/sign-in"' in page.text and 'href="/press/static/' in page.text
        [token] = set(re.findall(r'name="csrf" value="(\w+)"', page.text))
        form = page.headers["set-cookie"].split(";")[0]
        answer = browser.post(
            "/sign-in", data={"csrf": token, "key": house.key, "next": "/jobs"}, headers={"Cookie": form}
        )
        assert (answer.status_code, answer.headers["Location"]) == (303, "/press/jobs")
        assert all("Secure" in given and "Path=/press" in given for given in answer.headers.get_list("set-cookie")[:1])


@pytest.mark.parametrize("key", ["", "pw_", "pw_aaaaaaaa_" + "b" * 43, "Bearer x", "pw_\u00e9_x", "x" * 9000])
def test_no_key_no_session(house: House, key: str) -> None:
    answer = house.post("/sign-in", key=key, page="/sign-in")
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "presswork_session" not in house.browser.cookies
    assert house.browser.get("/").status_code == 303


def test_whoever_is_signed_out_signs_in_and_is_back_where_they_were(house: House) -> None:
    answer = house.browser.get("/?status=failed&label=run%3A1")
    assert answer.status_code == 303
    back = httpx.URL(answer.headers["Location"]).params["next"]
    answer = house.post("/sign-in", key=house.key, next=back, page="/sign-in")
    assert answer.headers["Location"] == "/?status=failed&label=run%3A1"
    part = httpx.get(f"{house.url}/", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/sign-in?next=/")


@pytest.mark.parametrize(
    "text", ["//evil.example", "/\\evil.example", "https://evil.example", "jobs", "", "/a\r\nSet-Cookie: b", "/\u00e9"]
)
def test_signing_in_leads_to_no_other_place(text: str) -> None:
    assert place(text) == "/"
    assert place("/jobs?x=%20") == "/jobs?x=%20"


def test_a_session_ends_when_it_is_signed_out(signed: House) -> None:
    cookie = signed.browser.cookies["presswork_session"]
    answer = signed.post("/sign-out", page="/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in")
    assert httpx.get(signed.url, cookies={"presswork_session": cookie}).status_code == 303


def test_a_session_ends_with_its_key(signed: House) -> None:
    assert signed.browser.get("/").status_code == 200
    with signed.api.database.begin_system() as connection:
        api_keys.revoke_key(connection, signed.key.split("_")[1])
    assert signed.browser.get("/").status_code == 303


def test_a_session_ends_after_its_days_and_is_forgotten(signed: House) -> None:
    with signed.api.database.begin_system() as connection:
        connection.execute(
            text(
                "WITH old AS (DELETE FROM sessions WHERE key_id = :id RETURNING sha256, key_id) "
                "INSERT INTO sessions (sha256, key_id, expires_at) SELECT sha256, key_id, now() FROM old"
            ),
            {"id": signed.key.split("_")[1]},
        )
    assert signed.browser.get("/").status_code == 303
    signed.browser.cookies.clear()
    signed.sign_in()
    with signed.api.database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM sessions WHERE expires_at <= now()")).scalar_one() == 0


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
def test_a_form_that_no_page_of_ours_made_is_refused(signed: House, path: str) -> None:
    for token in ("", "0" * 64, "\u00e9"):
        answer = signed.browser.post(path, data={"csrf": token, "key": signed.key})
        assert answer.status_code == 403
        assert "This form is out of date" in answer.text
    assert signed.browser.get("/").status_code == 200


def test_a_key_in_the_authorization_header_opens_no_page(house: House) -> None:
    """Only the cookie does, which comes with a token for forms."""
    assert house.http.get("/").status_code == 303


def test_a_form_that_is_too_long_is_refused(house: House) -> None:
    assert house.browser.post("/sign-in", data={"key": "x" * 70_000}).status_code == 413


def test_a_file_is_kept_for_a_year_at_the_address_of_its_content(house: House) -> None:
    page = house.browser.get("/sign-in").text
    for address in set(re.findall(r'"(/static/[^"]+)"', page)):
        answer = house.browser.get(address)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert house.browser.get(re.sub(r"/static/\w+/", "/static/0/", address)).headers["Cache-Control"] == "no-store"
    assert house.browser.get("/static/0/../../web.py").status_code == 404
    assert house.browser.get("/static/0/nothing.js").status_code == 404


def test_a_link_signs_in_once_and_to_its_page(house: House) -> None:
    made = house.http.post("/v1/sign-in-links", params={"next": "/jobs?status=failed"})
    assert made.status_code == 201
    url = httpx.URL(made.json()["url"])
    token = url.fragment.removeprefix("link=")
    assert (url.path, url.params["next"]) == ("/sign-in", "/jobs?status=failed")
    assert house.key.split("_")[2] not in str(url) and token not in str(url.copy_with(fragment=""))
    first = house.post("/sign-in", link=token, next=url.params["next"], page="/sign-in")
    assert (first.status_code, first.headers["Location"]) == (303, "/jobs?status=failed")
    assert house.browser.get("/").status_code == 200
    house.browser.cookies.clear()
    again = house.post("/sign-in", link=token, page="/sign-in")
    assert again.status_code == 401 and "was used before or has expired" in again.text


@pytest.mark.parametrize("ends", ["link", "key"])
def test_a_link_ends_after_two_minutes_and_with_its_key(house: House, ends: str) -> None:
    token = house.http.post("/v1/sign-in-links").json()["url"].partition("#link=")[2]
    with house.api.database.begin_system() as connection:
        if ends == "key":
            api_keys.revoke_key(connection, api_keys.id_of(house.key))
        else:
            aged = "WITH old AS (DELETE FROM sign_in_links RETURNING sha256, key_id) "
            aged += "INSERT INTO sign_in_links SELECT sha256, key_id, now() FROM old"
            connection.execute(text(aged))
    answer = house.post("/sign-in", link=token, page="/sign-in")
    assert answer.status_code == 401 and "presswork_session" not in house.browser.cookies


def test_the_command_opens_the_dashboard_signed_in(
    house: House, open_tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESSWORK_URL", house.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", house.key)
    job = house.submit({"prompt": "a", "size": "64x64"})
    result = CliRunner().invoke(app, ["open", job, "--print"])
    assert result.exit_code == 0, result.output
    tab = open_tab(sign_in=False)
    tab.page.goto(result.stdout.strip())
    tab.page.wait_for_url(f"{house.url}/jobs/{job}")
    tab.page.get_by_role("button", name="Sign out").wait_for()
    assert tab.errors == []
