"""Those who look at the dashboard's pages: a tenant with a key, and a tab of a browser."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page

from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model.specs import FailedImage
from services.core.storage.s3 import S3Store
from tests import factories
from tests.web import Api

AXE = Path(__file__).parent / "dashboard" / "vendor" / "axe.min.js"


@dataclass
class House:
    """A tenant with a key, and a client for the API and one for pages."""

    api: Api
    tenant: int
    key: str
    http: httpx.Client
    browser: httpx.Client

    @property
    def url(self) -> str:
        return self.api.url

    def submit(self, *images: dict[str, object], **head: object) -> str:
        answer = self.http.post("/v1/jobs", json={"images": list(images) or [{"prompt": "a mug"}], **head})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def sign_in(self) -> None:
        self.post("/sign-in", key=self.key, page="/sign-in")

    def post(self, path: str, *, page: str, **fields: str) -> httpx.Response:
        """Sends a form with the token of the page that it is on."""
        [token] = set(re.findall(r'name="csrf" value="(\w+)"', self.browser.get(page).text))
        return self.browser.post(path, data={"csrf": token, **fields})

    def render(
        self, most: int = 100, failed: Iterable[int] = (), message: str = "it broke", code: str = "render_error"
    ) -> None:
        """As a worker would: up to `most` of the images that wait, those of these indexes fail."""
        store = S3Store(self.api.settings)
        while most > 0 and (claim := factories.claim(self.api.database, min(16, most))) is not None:
            most -= len(claim.images)
            done, wrong = [], []
            for image in factories.stored(claim, picture()):
                if image.index in failed:
                    wrong.append(FailedImage(image.job_id, image.index, code, message))
                else:
                    store.put(image.object_key, picture(), "image/png", {}, claim_id=claim.id)
                    scores = {"sharpness": image.index / 10, "uniform": 0.5}
                    done.append(replace(image, scores=scores, phash=image.index // 2))
            factories.settle(self.api.database, claim, stored=done, failed=wrong)
        self.tick()

    def tick(self) -> None:
        """What a scheduler does now and then."""
        with self.api.database.begin_system() as connection:
            lifecycle.finish(connection)
        with self.api.database.begin_system() as connection:
            numbering.number(connection)


def picture() -> bytes:
    """A PNG of 600 by 400 pixels."""
    found = io.BytesIO()
    Image.new("RGB", (600, 400), "teal").save(found, "PNG")
    return found.getvalue()


@dataclass
class Tab:
    """A page of a browser that is signed in, and what went wrong in it."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def violations(self) -> list[str]:
        """What axe finds wrong by WCAG 2.2 A and AA."""
        self.page.evaluate(AXE.read_text())
        # What is right stays there: it is most of what axe tells, with the HTML of every element.
        found = self.page.evaluate(
            "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'], "
            "resultTypes: ['violations']}).then((found) => found.violations)"
        )
        return [
            f"{entry['id']}: {node['html'][:150]} {node['failureSummary']}"
            for entry in found
            for node in entry["nodes"]
        ]
