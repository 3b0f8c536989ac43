"""Search in a job by a text: page by page, a bounded number of requests each."""

import pytest
from sqlalchemy import text

from presswork_client import Client
from services.core.db import partitions
from services.core.jobs import custom_ids, search
from services.core.model import ids
from services.core.queue import job_states
from tests import factories
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


def named(api: Api, custom_id: str, **more: str | int) -> dict:
    answer = api.http.get("/v1/images", params={"custom_id": custom_id, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_custom_id_is_found_in_all_jobs_of_the_tenant_the_newest_first_page_by_page(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(custom_ids, "LOOKED_AT", 3)
    jobs = [
        api.submit({"prompt": "x"}, {"prompt": f"mug {nth}", "custom_id": "mug", "n": 2}, {"prompt": "y"})["id"]
        for nth in range(5)
    ]
    _, key = api.new_tenant("other")
    other = {"Authorization": f"Bearer {key}"}
    body = {"images": [{"prompt": "theirs", "custom_id": "mug"}]}
    for _ in range(4):
        assert api.http.post("/v1/jobs", json=body, headers=other).status_code == 202
    found: list[dict] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = named(api, "mug", limit=2, **cursor)
        found += page["data"]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [(one["job_id"], one["index"], one["custom_id"]) for one in found] == [(job, 1, "mug") for job in jobs[::-1]]
    assert pages > 3  # the first looked at requests of the other tenant alone
    assert [one["job_id"] for one in api.http.get("/v1/images?custom_id=mug", headers=other).json()["data"]] != []
    assert named(api, "Mug")["data"] == named(api, "nothing")["data"] == []
    wrong = api.http.get("/v1/images", params={"custom_id": "other", **cursor})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_cursor")
    for asked in ({}, {"custom_id": ""}, {"custom_id": "x" * 129}, {"custom_id": "a\0b"}):
        assert api.http.get("/v1/images", params=asked).status_code in (400, 422), asked
    with Client(api.url, api.key) as client:
        assert [image["job_id"] for image in client.find("mug")] == jobs[::-1]
        with api.database.begin_system() as connection:
            job_states.mark_deleted(connection, factories.TENANT, ids.parse_job(str(jobs[3])))
        assert [image["job_id"] for image in client.find("mug")] == [jobs[4], *jobs[2::-1]]


def test_a_custom_id_is_looked_for_in_the_pages_that_may_have_it(database, settings):
    """The index covers this week's partition and the default one."""
    factories.register(database)
    job_id = factories.submit(database, settings, [{"prompt": "a", "custom_id": f"i{n}"} for n in range(20)])
    leaf = partitions.partition_name("payloads", job_id)
    with database.begin_system() as connection:
        assert custom_ids.find(connection, factories.TENANT, "i8", limit=5).places == [custom_ids.Place(job_id, 8)]
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # which is cheaper for so few
        lines = list(connection.execute(text("EXPLAIN SELECT FROM payloads WHERE custom_id = 'i7'")).scalars())
        for one in (leaf, "payloads_default"):
            assert any(f"Bitmap Index Scan on {one}_custom_id_idx" in line for line in lines), lines
        found = custom_ids.find(connection, factories.TENANT, "i7", limit=5)
    assert found == custom_ids.Found([custom_ids.Place(job_id, 7)], None)
