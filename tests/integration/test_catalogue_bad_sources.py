"""Whatever a source is, the run ends with one clear report, and what is published stays as it was."""

import dataclasses
import itertools
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import text

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import preparation
from services.core.db.database import Database
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing
from tests.integration.test_catalogue_runs import Shop
from tests.integration.test_fetching import send, serving

GOOD = "sku,title\na,red\nb,blue\n"


class Tried(Shop):
    """A shop with a published version, whose settings allow addresses of this machine."""

    def __init__(self, database: Database, settings: Settings) -> None:
        here = dataclasses.replace(settings, fetch_networks=(ip_network("127.0.0.1/32"),), fetch_http=True)
        super().__init__(database, here, S3Store(here))
        self.night({"a": "red", "b": "blue"})

    def tried(self, text_or_url: str, **source: str) -> runs.Run:
        """The run of another source, which is a text, or an address."""
        if text_or_url.startswith("http"):
            self.define(source={"url": text_or_url} | source)
        else:
            name = f"shop.{source.get('format', 'csv')}"
            self.define(source={"file": name} | source)
            cataloguing.upload_text(self.database, self.store, self.catalogue, text_or_url, name)
        run_id = cataloguing.begin(self.database, self.catalogue)
        self.tend()
        return self.read(run_id)

    def age(self, run: runs.Run) -> None:
        """The run has tried for so long that a source which is away is given up."""
        patience = preparation._PATIENCE + timedelta(minutes=1)
        with self.database.begin_system() as connection:
            connection.execute(text("UPDATE catalogue_runs SET created_at = created_at - :by"), {"by": patience})
        self.tend()


@pytest.fixture
def shop(database: Database, settings: Settings) -> Tried:
    return Tried(database, settings)


FILES: dict[str, tuple[dict[str, str], str, str, list[int | None]]] = {
    "two items with one id": ({}, GOOD + "a,pink\n", "line 4: sku is the one of line 2 again", [4]),
    "a row without an id": ({}, GOOD + ",pink\n", "line 4: sku is empty", [4]),
    "a broken line": ({"format": "jsonl"}, '{"sku": "a", "title": "red"}\n{"sku": \n', "line 2: ", [2]),
    "a line that is no object": ({"format": "jsonl"}, '{"sku": "a", "title": "red"}\n[1]\n', "line 2: ", [2]),
    "no column of ids": ({}, "title\nred\n", "shop.csv has no column 'sku'; it has: title.", []),
    "no column for a template": ({}, "sku,colour\na,red\n", "shop.csv has no column 'title'; it has: sku, colour.", []),
    "no items": ({}, "sku,title\n", "The source holds no items.", []),
    "nothing at all": ({}, "", "The source holds no items.", []),
    "a line without an end": ({"format": "jsonl"}, '{"sku": "' + "x" * 5_000_000, "line 1: it is longer than", []),
    "half of the items gone": ({}, "sku,title\na,red\n", "1 of 2 items have gone since the version before", []),
}  # fmt: skip


def test_a_file_that_is_not_usable_leaves_the_published_version_and_one_report(shop: Tried) -> None:
    before = (shop.pictures(), shop.pointer(), shop.objects(""))
    said = {}
    for row, (source, content, sentence, lines) in FILES.items():
        found = shop.tried(content, **source)
        assert found.state == ("kept" if row == "half of the items gone" else "failed"), row
        assert found.error is not None, row
        assert "\n" not in found.error["message"], row
        reported = [problem["line"] for problem in found.source.get("problems", [])]
        if sentence not in found.error["message"] or reported != lines:
            said[row] = (found.error["message"], reported)
        assert (shop.published(), shop.pictures(), shop.pointer(), shop.objects("")) == (1, *before), row
        assert (found.job_id, found.version) == (None, None), row
    assert said == {}
    assert shop.night({"a": "red", "b": "blue"}).state == "unchanged"


def _redirects(handler: BaseHTTPRequestHandler) -> None:
    send(handler, status=302, Location="http://169.254.169.254/latest/meta-data/")


def _is_missing(handler: BaseHTTPRequestHandler) -> None:
    send(handler, status=404)


def _changes() -> Callable[[BaseHTTPRequestHandler], None]:
    counter = itertools.count()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        number = next(counter)
        send(handler, f"{GOOD}c,{number}\n".encode(), ETag=f'"{number}"')

    return answer


@pytest.mark.parametrize(
    ("answer", "code", "waits"),
    [(_redirects, "forbidden_address", False), (_is_missing, "bad_status", False), (_changes(), "changed", True)],
)
def test_an_address_that_is_not_usable_leaves_the_published_version(
    shop: Tried, answer: Any, code: str, *, waits: bool
) -> None:
    with serving(answer) as url:
        found = shop.tried(url)
        if waits:  # it may have an end
            assert found.state == "queued"
            shop.age(found)
            found = shop.read(found.id)
    assert found.error is not None
    assert (found.state, found.error["code"], shop.published()) == ("failed", code, 1), found.error
    assert "secret" not in found.error["message"]
    assert shop.pictures() == {"a": b"red", "b": b"blue"}
