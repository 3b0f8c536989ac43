"""GET /v1/models: sizes, steps, licence and what it forbids."""

from dataclasses import replace

from services.core.model import licenses
from tests import factories
from tests.web import open_api


def test_a_model_says_what_can_be_asked_of_it_and_what_its_licence_forbids(settings):
    with open_api(settings) as api:
        assert api.http.get("/v1/models/simulated").json()["license"] is None
        wide = replace(factories.CARD, sizes=((512, 512), (768, 512)), license=licenses.named("openrail++"))
        factories.register(api.database, replace(wide, name="rail", revision="rail-1"))
        (found,) = (one for one in api.http.get("/v1/models").json()["data"] if one["id"] == "rail")
        assert (found["sizes"], found["max_num_inference_steps"]) == (["512x512", "768x512"], 50)
        assert found["license"]["name"] == "CreativeML Open RAIL++-M"
        assert found["license"]["link"].startswith("https://") and len(found["license"]["restrictions"]) == 11
