"""A catalogue of a house, whose nights are rendered as small pictures in the colour that the prompt names."""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import Image as Pillow
from PIL import ImageDraw

from services.core.model.specs import Image
from services.core.storage.s3 import S3Store
from tests import cataloguing
from tests.pages import House

COLOURS = ("red", "teal", "orange", "purple", "green", "navy", "brown", "gold")


def draw(image: Image) -> bytes:
    """A circle whose place comes from the seed."""
    colour = next((one for one in COLOURS if one in image.spec.prompt), "gray")
    found, at = Pillow.new("RGB", (64, 64), "white"), image.spec.seed % 24
    ImageDraw.Draw(found).ellipse((at, at, at + 36, at + 36), fill=colour)
    held = io.BytesIO()
    found.save(held, "PNG")
    return held.getvalue()


class Shop:
    """The catalogue `shop`, and what a scheduler and a worker do for it."""

    def __init__(self, house: House, name: str = "shop", **more: Any) -> None:
        self.house, self.name = house, name
        self.store = S3Store(house.api.settings)
        answer = house.http.put(f"/v1/catalogues/{name}", json=cataloguing.DEFINITION | more)
        assert answer.status_code == 201, answer.text

    def night(self, items: Mapping[str, str], *, failing: Iterable[str] = (), **asked: Any) -> dict[str, Any]:
        """A run of a feed with a title for each sku, as far as it goes without a person. Its report."""
        feed = io.StringIO()
        csv.writer(feed).writerows([("sku", "title"), *items.items()])
        file = {"file": ("shop.csv", feed.getvalue().encode())}
        uploaded = self.house.http.post("/v1/files", files=file, data={"purpose": "batch"}).json()["id"]
        self.house.http.put(f"/v1/catalogues/{self.name}/file", json={"file_id": uploaded})
        run = self.house.http.post(f"/v1/catalogues/{self.name}/runs", json=asked).json()["id"]
        self.tend()
        self.render(failing)
        return self.report(run)

    def render(self, failing: Iterable[str] = ()) -> None:
        cataloguing.render(self.house.api.database, self.store, failing=failing, draw=draw)
        self.tend()
        self.house.tick()

    def tend(self) -> None:
        cataloguing.tend(self.house.api.database, self.house.api.settings, self.store)

    def report(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.house.http.get(f"/v1/catalogues/{self.name}/runs/{run}").json()
        return found

    def published(self) -> int | None:
        found: int | None = self.house.http.get(f"/v1/catalogues/{self.name}").json()["published"]
        return found


def tomorrow() -> str:
    return f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
