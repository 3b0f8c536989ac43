"""Matrices over HTTP, and what a job would cost before it is submitted."""

from typing import Any

import httpx
import jsonschema
import pytest
from sqlalchemy import text

from services.core.fleet import workers
from tests import factories
from tests.web import Api

MATRIX = {"template": "a {colour} {thing}", "vary": {"colour": ["red", "blue"], "thing": ["mug", "jug", "vase"]}}


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def measured(api: Api, *, seconds: float, deviation: float = 0.0, images: int = 100, device: str = "gpu", **shape: Any):
    values = {"revision": factories.REVISION, "width": 512, "height": 512, "steps": 10, "guided": True, **shape}
    with api.database.begin_system() as connection:
        connection.execute(
            text(
                "INSERT INTO render_rates (model_revision, width, height, steps, guided, device, images,"
                " seconds_per_image, deviation) VALUES (:revision, :width, :height, :steps, :guided, :device, :images,"
                " :seconds, :deviation)"
            ),
            values | {"device": device, "images": images, "seconds": seconds, "deviation": deviation},
        )


def estimated(api: Api, **body: Any) -> dict[str, Any]:
    answer = api.http.post("/v1/jobs/estimate", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- matrices


def test_a_matrix_is_submitted_as_its_combinations(api: Api) -> None:
    answer = api.http.post(
        "/v1/jobs",
        json={"matrix": {**MATRIX, "repeat": 2, "seed": 7}, "defaults": {"size": "64x64"}, "priority": "low"},
    )
    job = answer.json()
    assert (answer.status_code, job["counts"]["total"], job["requests"], job["priority"]) == (202, 12, 6, "low")
    found = api.http.get(f"/v1/jobs/{job['id']}/requests").json()["data"]
    assert [request["prompt"] for request in found][:2] == ["a red mug", "a red jug"]
    assert [image["seed"] for image in found[5]["images"]] == [7, 8]


def test_a_matrix_and_its_combinations_are_the_same_submission(api: Api) -> None:
    headers = {"Idempotency-Key": "m"}
    first = api.http.post("/v1/jobs", json={"matrix": MATRIX}, headers=headers)
    listed = [{"prompt": f"a {colour} {thing}"} for colour in ("red", "blue") for thing in ("mug", "jug", "vase")]
    again = api.http.post("/v1/jobs", json={"images": listed}, headers=headers)
    assert first.json()["id"] == again.json()["id"]


def test_a_preview_counts_a_matrix_and_shows_its_first_requests(api: Api) -> None:
    before = api.rows()
    body = {"matrix": {**MATRIX, "repeat": 4}, "defaults": {"size": "64x64"}, "labels": {"a": "b"}}
    found = api.http.post("/v1/jobs/preview", json=body)
    assert (found.json()["requests"], found.json()["images"], len(found.json()["first"])) == (6, 24, 6)
    assert found.json()["first"][0] == {"prompt": "a red mug", "n": 4, "size": "64x64"}
    many = {"matrix": {"template": "{a}{b}", "vary": {name: [str(n) for n in range(1000)] for name in "ab"}}}
    assert len(api.http.post("/v1/jobs/preview", json=many).json()["first"]) == 10
    assert api.rows() == before


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/jobs/preview", "/v1/jobs/estimate"])
def test_a_bad_matrix_is_refused_on_every_route_and_leaves_no_row(api: Api, route: str) -> None:
    huge = {"template": "{a}{b}{c}", "vary": {name: [str(n) for n in range(1000)] for name in "abc"}}
    for matrix, expected in (
        (huge, "too_many_images"),
        ({"template": "{0.__class__}", "vary": {"a": ["x"]}}, "invalid_template"),
        ({"template": "{{a", "vary": {"a": ["x"]}}, "unused_name"),
        ({"template": "{a} {b}", "vary": {"a": ["x"]}}, "unknown_name"),
        ({"template": "{a}", "vary": {"a": ["x", " "]}}, "invalid_value"),
        ({"template": "{a}", "vary": {"a": ["\x07"]}}, "invalid_character"),
        ({"template": "{a}", "vary": {"a": ["x"], "size": ["1x1"]}}, "unserved_size"),
        ("a {colour} mug", "wrong_type"),
        (None, "missing_field"),
    ):
        assert code(api.http.post(route, json={"matrix": matrix})) == (422, expected), matrix
    both = api.http.post(route, json={"matrix": MATRIX, "images": [{"prompt": "a"}]})
    assert both.status_code == 422
    assert api.http.post(route, json={"matrix": MATRIX, "colour": 1}).status_code == 422
    assert api.http.post(route, json={}).status_code == 422
    assert api.rows()["jobs"] == 0


# --- estimates


def test_an_estimate_multiplies_what_was_measured_and_shares_it_among_the_live_workers(api: Api) -> None:
    measured(api, seconds=2.0, deviation=0.5)
    found = estimated(api, images=[{"prompt": "a", "n": 100}])
    assert (found["object"], found["requests"], found["images"], found["ahead"]) == ("estimate", 1, 100, 0)
    assert found["shapes"] == [
        {
            "model": "simulated", "size": "512x512", "num_inference_steps": 10, "guided": True, "first_step": 0,
            "images": 100, "workers": 1, "seconds_per_image": 2.0, "measured": "this shape",
        }
    ]  # fmt: skip
    # two standard errors of 100 images measured, and as much for chance among 100 to render
    assert found["accelerator_seconds"] == {"low": 180.0, "expected": 200.0, "high": 220.0}
    assert found["seconds_to_finish"] == found["accelerator_seconds"] and (found["served"], found["workers"]) == (
        True,
        1,
    )
    with api.database.begin_system() as connection:
        workers.register(connection, "worker-b", host="h", pid=2, device="gpu", model="simulated",
                         revision=factories.REVISION, state="ready")  # fmt: skip
    assert estimated(api, images=[{"prompt": "a", "n": 100}])["seconds_to_finish"]["expected"] == 100.0
    assert api.rows()["jobs"] == 0


def test_the_interval_spans_the_devices(api: Api) -> None:
    measured(api, seconds=1.0, device="quick", images=300)
    measured(api, seconds=3.0, device="slow", images=100)
    found = estimated(api, matrix=MATRIX)
    assert found["accelerator_seconds"] == {"low": 6.0, "expected": 9.0, "high": 18.0}


def test_what_waits_in_the_same_or_a_higher_class_comes_first(api: Api) -> None:
    measured(api, seconds=1.0)
    for priority, images in (("high", 5), ("normal", 7), ("low", 11)):
        api.submit({"prompt": "a", "n": images}, priority=priority)
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a", "n": 100}]})
    paused = api.submit({"prompt": "a", "n": 100})["id"]
    api.http.post(f"/v1/jobs/{paused}/pause")
    for priority, ahead in (("high", 5), ("normal", 12), ("low", 23)):
        found = estimated(api, shapes=[{"images": 10}], priority=priority)
        assert (found["ahead"], found["seconds_to_finish"]["expected"]) == (ahead, ahead + 10.0)
        assert (found["accelerator_seconds"]["expected"], found["requests"]) == (10.0, None)


def test_a_shape_that_was_not_measured_is_scaled_from_its_nearest_with_a_wider_interval(api: Api) -> None:
    assert estimated(api, shapes=[{"images": 10}])["accelerator_seconds"] is None
    measured(api, seconds=8.0)
    found = estimated(api, shapes=[{"images": 10, "size": "256x256", "num_inference_steps": 5, "guidance_scale": 1.0}])
    assert (found["shapes"][0]["seconds_per_image"], found["shapes"][0]["measured"]) == (0.5, "another shape")
    assert found["accelerator_seconds"] == {"low": 2.5, "expected": 5.0, "high": 10.0}
    assert found["shapes"][0]["guided"] is False


def test_without_a_live_worker_nothing_is_said_of_the_end(api: Api) -> None:
    measured(api, seconds=1.0)
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '16 seconds'"))
    found = estimated(api, shapes=[{"images": 10}])
    assert (found["seconds_to_finish"], found["served"], found["workers"]) == (None, False, 0)
    assert found["accelerator_seconds"]["expected"] == 10.0
    assert found["shapes"][0]["workers"] == 0


def test_a_bad_estimate_is_refused_like_a_bad_submission(api: Api) -> None:
    for body in (
        {"shapes": []}, {"shapes": {}}, {"shapes": [{}]}, {"shapes": [{"images": 0}]}, {"shapes": [{"images": 2**31}]},
        {"shapes": [{"images": 1, "prompt": "a"}]}, {"shapes": [5]}, {"shapes": [{"images": 1}] * 65},
        {"shapes": [{"images": 1, "model": "none"}]}, {"shapes": [{"images": 1, "size": "1x1"}]},
        {"shapes": [{"images": 1}], "images": [{"prompt": "a"}]}, {"images": [{"prompt": ""}]}, {"images": []},
        {"shapes": [{"images": 1}], "priority": "urgent"}, {"draft": True}, [],
    ):  # fmt: skip
        answer = api.http.post("/v1/jobs/estimate", json=body)
        assert answer.status_code == 422, body
    line = {"Content-Type": "application/x-ndjson"}
    assert api.http.post("/v1/jobs/estimate", content=b'{"prompt":"a"}', headers=line).status_code == 415


def test_openapi_tells_the_truth_about_the_bodies_of_matrices_drafts_and_chunks(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    paths, named = document["paths"], {"components": document["components"]}
    chunk = f"/v1/jobs/{api.http.post('/v1/jobs', json={'draft': True}).json()['id']}/chunks/0"
    images = [{"prompt": "a"}]
    for method, path, address, body in (
        ("post", "/v1/jobs", "/v1/jobs", {"draft": True}),
        ("post", "/v1/jobs", "/v1/jobs", {"draft": True, "labels": {"a": "b"}, "dedupe": True}),
        ("post", "/v1/jobs", "/v1/jobs", {"draft": True, "defaults": {}}),
        ("post", "/v1/jobs", "/v1/jobs", {"draft": False, "images": images}),
        ("post", "/v1/jobs", "/v1/jobs", {"draft": False}),
        ("post", "/v1/jobs", "/v1/jobs", {"matrix": MATRIX, "defaults": {"n": 2}}),
        ("post", "/v1/jobs", "/v1/jobs", {"matrix": MATRIX, "images": images}),
        ("post", "/v1/jobs", "/v1/jobs", {"matrix": {**MATRIX, "repeat": 0}}),
        ("post", "/v1/jobs", "/v1/jobs", {"matrix": {**MATRIX, "combine": "cross"}}),
        ("post", "/v1/jobs/preview", "/v1/jobs/preview", {"matrix": MATRIX}),
        ("post", "/v1/jobs/preview", "/v1/jobs/preview", {"images": images}),
        ("post", "/v1/jobs/estimate", "/v1/jobs/estimate", {"images": images, "priority": "low"}),
        ("post", "/v1/jobs/estimate", "/v1/jobs/estimate", {"shapes": [{"images": 1}], "priority": "low"}),
        ("post", "/v1/jobs/estimate", "/v1/jobs/estimate", {"shapes": [{"images": 1, "n": 1}]}),
        ("put", "/v1/jobs/{job_id}/chunks/{number}", chunk, {"images": images}),
        ("put", "/v1/jobs/{job_id}/chunks/{number}", chunk, {"images": images, "priority": "low"}),
        ("put", "/v1/jobs/{job_id}/chunks/{number}", chunk, {"images": []}),
    ):
        schema = paths[path][method]["requestBody"]["content"]["application/json"]["schema"] | named
        accepted = api.http.request(method, address, json=body).is_success
        assert jsonschema.Draft202012Validator(schema).is_valid(body) == accepted, (path, body)
