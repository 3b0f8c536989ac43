"""The models in the settings: what each can be asked for, and what its licence forbids."""

import dataclasses
import html

from services.core.fleet import models
from services.core.model import licenses
from tests import factories
from tests.pages import House


def test_a_models_page_says_what_the_api_says(signed: House) -> None:
    known = licenses.named("openrail++")
    card = dataclasses.replace(
        factories.CARD, name="Deci/Deci 2", revision="deci-2", sizes=((512, 512), (768, 512)), license=known
    )
    other = dataclasses.replace(
        factories.CARD, name="odd", revision="odd", license=licenses.named("x", "X", "javascript:1")
    )
    with signed.api.database.begin_system() as connection:
        models.register(connection, card)
        models.register(connection, other)
    listed = html.unescape(signed.browser.get("/settings/models").text)
    for model in signed.http.get("/v1/models").json()["data"]:
        assert f"<strong>{model['id']}</strong>" in listed
    assert "CreativeML Open RAIL++-M" in listed and "768×512" in listed and "its card names none" in listed
    page = html.unescape(signed.browser.get("/settings/models/Deci%2FDeci%202").text)
    assert all(one in page for one in known.restrictions) and f'href="{known.link}"' in page
    assert "512×512" in page and "768×512" in page and "up to 50" in page and "deci-2" in page
    assert 'href="javascript' not in signed.browser.get("/settings/models/odd").text
    assert signed.browser.get("/settings/models/none").status_code == 404
    assert 'href="/settings/models"' in signed.browser.get("/settings/log").text
