"""One server, one database and one browser for all tests of pages in a process; each test gets a tenant of its own."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count

import httpx
import pytest
from playwright.sync_api import Browser, sync_playwright

from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests.pages import House, Tab
from tests.web import Api, open_api

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
_numbers = count(1)


@pytest.fixture(scope="session")
def served(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Api]:
    with fresh_database(template) as url:
        settings = Settings.read(dict(stack.values) | {"DATABASE_URL": url})
        S3Store(settings).prepare()
        with open_api(settings) as running:
            yield running


@pytest.fixture
def house(served: Api) -> Iterator[House]:
    tenant, key = served.new_tenant(f"house-{next(_numbers)}", operator=True)
    headers = {"Authorization": f"Bearer {key}"}
    options = {"base_url": served.url, "timeout": 60, "trust_env": False}
    with httpx.Client(headers=headers, **options) as http, httpx.Client(**options) as browser:  # type: ignore[arg-type]
        yield House(served, tenant, key, http, browser)
        for job in (
            http.get("/v1/jobs?limit=1000").json().get("data", [])
        ):  # so that the next test's worker finds its own
            if job["finished_at"] is None:
                http.post(f"/v1/jobs/{job['id']}/cancel")


@pytest.fixture
def signed(house: House) -> House:
    """The house, with its pages' client signed in."""
    house.sign_in()
    return house


@pytest.fixture(scope="module")  # Playwright's event loop would be in the way of later tests that run their own
def chromium() -> Iterator[Browser]:
    if not CHROMIUM:
        sentence = "no chromium: install it (apt-get install chromium) or set CHROMIUM to run the tests of pages"
        if os.environ.get("CI") and not os.environ.get("PRESSWORK_TESTS_NO_BROWSER"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser, house: House) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of one browser; `width` in pixels, `theme` light or dark."""
    contexts = []

    def make(width: int = 1280, theme: str = "light", *, sign_in: bool = True, url: str = house.url) -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        contexts.append(context)
        tab = Tab(context.new_page(), url)
        tab.page.on("console", lambda told: tab.errors.append(told.text) if told.type in ("error", "warning") else None)
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.on("request", lambda asked: tab.requests.append(asked.url))
        if sign_in:
            tab.open("/sign-in")
            tab.page.get_by_label("API key").fill(house.key)
            tab.page.get_by_role("button", name="Sign in").click()
            tab.page.wait_for_url(f"{url}/")
        return tab

    yield make
    for context in contexts:
        context.close()
