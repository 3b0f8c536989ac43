"""Search in a job by a text: page by page, a bounded number of requests each."""

import pytest

from presswork_client import Client
from services.core.jobs import search
from tests.web import Api


def found(api: Api, job: str, text: str, **more: str | int) -> dict:
    answer = api.http.get(f"/v1/jobs/{job}/search", params={"text": text, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_is_found_in_prompts_and_custom_ids_whatever_its_case(api: Api):
    job = api.submit(
        {"prompt": "a Red mug", "custom_id": "SKU-1", "n": 2},
        {"prompt": "a blue mug, 100%", "custom_id": "sku_2"},
        {"prompt": "Äpfel", "custom_id": "fruit"},
        {"prompt": "a back\\slash"},
    )["id"]
    texts = ("red", "MUG", "sku", "100%", "sku_", "%", "_", "äpfel", "k\\s", "nothing", "a Red mug and more")
    seen = {text: [image["index"] for image in found(api, job, text)["data"]] for text in texts}
    assert seen == {
        "red": [0], "MUG": [0, 2], "sku": [0, 2], "100%": [2], "sku_": [2], "%": [2], "_": [2], "äpfel": [3],
        "k\\s": [4], "nothing": [], "a Red mug and more": [],
    }  # fmt: skip
    last = found(api, job, "nothing")
    assert (last["searched"], last["total"], last["next_cursor"]) == (5, 5, None)


def test_pages_go_on_where_the_last_ended_and_say_how_far_they_came(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "SEARCHED", 7)
    job = api.submit(*[{"prompt": f"a {'mug' if nth in (3, 4, 5, 18) else 'lamp'}"} for nth in range(20)])["id"]
    first = found(api, job, "mug", limit=2)
    assert [image["index"] for image in first["data"]] == [3, 4]
    assert (first["searched"], first["total"]) == (5, 20)
    second = found(api, job, "mug", limit=2, cursor=first["next_cursor"])
    assert ([image["index"] for image in second["data"]], second["searched"]) == ([5], 12)
    third = found(api, job, "mug", limit=2, cursor=second["next_cursor"])
    assert ([image["index"] for image in third["data"]], third["searched"]) == ([18], 19)
    last = found(api, job, "mug", limit=2, cursor=third["next_cursor"])
    assert (last["data"], last["searched"], last["next_cursor"]) == ([], 20, None)
    with Client(api.url, api.key) as client:
        assert [image["index"] for image in client.search(job, "mug")] == [3, 4, 5, 18]
    other = api.http.get(f"/v1/jobs/{job}/search", params={"text": "lamp", "cursor": first["next_cursor"]})
    assert (other.status_code, other.json()["error"]["code"]) == (400, "invalid_cursor")


def test_a_search_without_a_text_or_a_job_is_refused(api: Api):
    job = api.submit()["id"]
    for asked in ({}, {"text": ""}, {"text": "x" * 201}, {"text": "x", "limit": 0}, {"text": "a\0b"}):
        assert api.http.get(f"/v1/jobs/{job}/search", params=asked).status_code in (400, 422), asked
    assert api.http.get("/v1/jobs/job_0000000000000000/search", params={"text": "x"}).status_code == 404
