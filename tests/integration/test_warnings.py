"""`warnings` of a job: what is allowed and hardly meant, at whatever door it came in."""

from typing import Any

from services.core.jobs import lifecycle
from services.core.model.specs import FailedImage
from tests import factories
from tests.web import Api

NONE = "dedupe reuses nothing: no request has a seed, so each draws a new one; the same seed again reuses an image."
SOME = (
    "dedupe reuses only images of requests with a seed: 1 of 2 requests have none, so each draws a new one; the same"
    " seed again reuses an image."
)
MUG: dict[str, Any] = {"prompt": "a mug"}


def warned(api: Api, job: object) -> list[str]:
    found: list[str] = api.http.get(f"/v1/jobs/{job}").json()["warnings"]
    return found


def test_a_job_that_cannot_reuse_anything_says_so(emptied: Api) -> None:
    api = emptied
    for images, head, expected in (
        ([MUG, MUG], {"dedupe": True}, [NONE]),
        ([MUG, {**MUG, "seed": 7}], {"dedupe": True}, [SOME]),
        ([MUG], {"dedupe": True, "defaults": {"seed": 0}}, []),
        ([{**MUG, "seed": 7}], {"dedupe": True}, []),
        ([MUG], {}, []),
    ):
        job = api.submit(*images, **head)
        assert (job["warnings"], warned(api, job["id"])) == (expected, expected), (images, head)


def test_a_draft_counts_the_requests_of_all_its_chunks(emptied: Api) -> None:
    api = emptied
    draft = api.http.post("/v1/jobs", json={"draft": True, "dedupe": True}).json()
    assert draft["warnings"] == []
    for number, image in enumerate(({**MUG, "seed": 7}, MUG)):
        api.http.put(f"/v1/jobs/{draft['id']}/chunks/{number}", json={"images": [image]}).raise_for_status()
    finished = api.http.post(f"/v1/jobs/{draft['id']}/finalize", json={"chunks": 2})
    assert finished.json()["warnings"] == [SOME]


def test_a_retry_has_the_seeds_that_were_drawn_and_warns_of_nothing(emptied: Api) -> None:
    api = emptied
    job = str(api.submit(MUG, dedupe=True)["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    failed = [FailedImage(image.job_id, image.index, "broken", "No.") for image in claim.images]
    factories.settle(api.database, claim, stored=[], failed=failed)
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    child = api.http.post(f"/v1/jobs/{job}/retry", json={}).json()
    assert (child["dedupe"], child["requests"], child["warnings"]) == (True, 1, [])
