"""The gallery of a job's images, a picture large, and marks on every page that shows pictures, by button and by key."""

import html
import re
import shlex
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from services.core.jobs import image_pages, search
from services.core.model import ids
from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from services.dashboard.pages import duplicates, find, gallery, marking, requests
from tests.integration.test_statements import counted
from tests.pages import House, Tab

SHAPE = "model_revision, width, height, steps, guided"


def small(count: int = 1) -> list[dict[str, object]]:
    return [{"prompt": f"mug {nth}", "size": "64x64", "custom_id": f"m{nth}"} for nth in range(count)]


def indexes(page: httpx.Response) -> list[int]:
    """The images in the gallery, in order."""
    assert page.status_code == 200, page.text
    return [int(index) for index in re.findall(r'<li id="image-(\d+)"', page.text)]


def following(page: httpx.Response) -> str:
    """The address of the next page; empty: there is none."""
    found = re.search(r'data-more href="([^"]+)"', page.text)
    return found[1].replace("&amp;", "&") if found else ""


def test_a_page_sends_ten_statements_at_most_whatever_it_shows(signed: House) -> None:
    job = signed.submit(*small(60))
    signed.render(failed=[3])
    signed.http.put(f"/v1/jobs/{job}/marks", json={"mark": "accepted", "indexes": [0]})
    for path in ("", "/images", "/images?mark=none", "/images?cause=render_error", "/images?q=mug", "/images/3"):
        with counted() as sent:
            assert signed.browser.get(f"/jobs/{job}{path}").status_code == 200
        assert len(sent) <= 10, (path, sent)


def marks(house: House, job: str) -> dict[int, str]:
    found = house.http.get(f"/v1/jobs/{job}/marks").json()["data"]
    return {one["index"]: one["mark"] for one in found}


def test_images_are_shown_by_state_cause_mark_and_text_page_by_page(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_PER_PAGE", 3)
    monkeypatch.setattr(image_pages, "LOOKED_AT", 4)
    monkeypatch.setattr(search, "SEARCHED", 4)
    job = signed.submit(*small(10))
    signed.render(most=8, failed=[2, 5])
    signed.http.put(f"/v1/jobs/{job}/marks", json={"mark": "accepted", "indexes": [0, 1, 3, 4]})
    for query, wanted in {
        "": [2, 5, 0, 1, 3, 4, 6, 7, 8, 9],
        "?state=failed": [2, 5],
        "?state=queued": [8, 9],
        "?cause=render_error": [2, 5],
        "?cause=other": [],
        "?mark=accepted": [0, 1, 3, 4],
        "?mark=none": [6, 7],
        "?mark=starred": [],
        "?q=M7": [7],
        "?q=nothing": [],
    }.items():
        address, found = f"/jobs/{job}/images{query}", []
        while address:
            page = signed.browser.get(address)
            assert len(indexes(page)) <= 3
            found += indexes(page)
            address = following(page)
        assert found == wanted, query
    assert "4 of 10 searched" in signed.browser.get(f"/jobs/{job}/images?q=nothing").text
    for wrong in ("state=none", "mark=good", "state=failed&mark=accepted", "q=a&state=done", "cursor=x", "cause=%00"):
        assert signed.browser.get(f"/jobs/{job}/images?{wrong}").status_code == 400, wrong
    assert signed.browser.get("/jobs/job_0000000000000/images").status_code == 404


def test_images_are_sorted_and_chosen_by_a_score_page_by_page(signed: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_PER_PAGE", 3)
    job = signed.submit(*small(8))
    signed.render(failed=[2])
    for query, wanted in {
        "?sort=sharpness": [0, 1, 3, 4, 5, 6, 7],
        "?sort=-sharpness": [7, 6, 5, 4, 3, 1, 0],
        "?score=sharpness>=0.3": [7, 6, 5, 4, 3],
        "?score=sharpness<=0.3,uniform<=0.5&sort=-sharpness": [3, 1, 0],
        "?sort=clip": [],
    }.items():
        address, found = f"/jobs/{job}/images{query}", []
        while address:
            page = signed.browser.get(address)
            found += indexes(page)
            address = following(page)
        assert found == wanted, query
    page = signed.browser.get(f"/jobs/{job}/images?sort=-sharpness").text
    assert '<option value="-sharpness" selected>highest sharpness' in page and "sharpness 0.7" in page
    assert "No image has such scores." in signed.browser.get(f"/jobs/{job}/images?sort=clip").text
    for wrong in ("sort=phash", "score=sharpness", "sort=sharpness&mark=accepted", "sort=sharpness&cursor=x"):
        assert signed.browser.get(f"/jobs/{job}/images?{wrong}").status_code == 400, wrong
    for way in ("sort=sharpness", "score=sharpness>=0.3"):
        assert signed.post(f"/jobs/{job}/marks/rejected?{way}", page=f"/jobs/{job}/marks/rejected").status_code == 422
    assert marks(signed, job) == {}
    shown = signed.browser.get(f"/jobs/{job}/images/4").text
    assert "<dt>Sharpness</dt><dd>0.4</dd>" in shown and "<code>0000000000000002</code>" in shown
    empty = signed.submit(*small(1))
    assert 'id="sort"' not in signed.browser.get(f"/jobs/{empty}/images").text


def test_near_duplicates_are_shown_in_groups_of_a_job_and_over_a_label(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = signed.submit(*small(6), labels={"for": "shop"})
    signed.render()
    page = signed.browser.get(f"/jobs/{job}/duplicates?distance=0")
    assert "3 groups among 6 images." in page.text
    assert indexes(page) == [0, 1, 2, 3, 4, 5]  # each two have the same hash
    every = signed.browser.get(f"/jobs/{job}/duplicates").text
    assert "1 group among 6 images." in every and 'href="/duplicates?label=for%3Ashop"' in every
    of_label = signed.browser.get("/duplicates?label=for:shop&distance=0").text
    assert "3 groups among 6 images." in of_label and f'href="/jobs/{job}/images/5"' in of_label
    monkeypatch.setattr(duplicates, "_GROUPS", 2)
    first = signed.browser.get(f"/jobs/{job}/duplicates?distance=0")
    assert indexes(first) == [0, 1, 2, 3]
    assert indexes(signed.browser.get(following(first))) == [4, 5]
    monkeypatch.setattr(duplicates, "_LOOKED_AT", 3)
    address, found = f"/jobs/{job}/duplicates?distance=0", []
    while address:
        page = signed.browser.get(address)
        found += indexes(page)
        address = following(page)
    assert found == [0, 1, 4, 5]  # three images at a time: 2 and 3 are not looked at together
    assert "No image is done here." in signed.browser.get("/duplicates?label=for:nobody").text
    assert "Name a label" in signed.browser.get("/duplicates").text
    for wrong in ("distance=7", "distance=x", "label=for", "cursor=x&label=for:shop"):
        assert signed.browser.get(f"/duplicates?{wrong}").status_code == 400, wrong
    assert signed.browser.get("/jobs/job_0000000000000/duplicates").status_code == 404


def test_all_that_match_are_marked_after_a_question_that_says_how_many(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = signed.submit(*small(9))
    signed.render(failed=[3])
    signed.http.put(f"/v1/jobs/{job}/marks", json={"mark": "rejected", "indexes": [0]})
    page = f"/jobs/{job}/marks/accepted"
    assert "8 done images become accepted. Marks that they have now are replaced." in signed.browser.get(page).text
    assert "7 unmarked images become accepted." in signed.browser.get(f"{page}?mark=none").text
    monkeypatch.setattr("services.core.marks.marks.put_matching.__kwdefaults__", {
        "after": -1, "which": None, "flagged": None, "most": 3,
    })  # fmt: skip
    monkeypatch.setattr(marking, "SLICE_SECONDS", -1.0)
    answer = signed.post(f"{page}?mark=none", page=f"{page}?mark=none")
    between = answer.headers["Location"]
    assert between == f"{page}?mark=none&after=2&changed=2"
    assert "2 images marked so far" in signed.browser.get(between).text
    monkeypatch.setattr(marking, "SLICE_SECONDS", 5.0)
    answer = signed.post(f"{page}?mark=none", page=between, after="2", changed="2")
    assert answer.headers["Location"] == f"/jobs/{job}/images?mark=none"
    assert marks(signed, job) == {0: "rejected"} | dict.fromkeys((1, 2, 4, 5, 6, 7, 8), "accepted")
    assert "1 rejected image lose their mark." in signed.browser.get(f"/jobs/{job}/marks/none?mark=rejected").text
    for wrong in ("state=failed", "cause=render_error", "q=mug"):
        assert signed.browser.get(f"{page}?{wrong}").status_code == 422
        assert signed.post(f"{page}?{wrong}", page=page).status_code == 422
    assert signed.browser.get(f"/jobs/{job}/marks/good").status_code == 404


def test_one_picture_is_marked_from_its_page_which_says_who_did_it(signed: House) -> None:
    job = signed.submit(*small(2))
    page = f"/jobs/{job}/images/0"
    signed.render(most=1)
    answer = signed.post(f"/jobs/{job}/marks", page=page, index="0", mark="starred")
    assert (answer.status_code, answer.headers["Location"]) == (303, page)
    assert f"Starred by key/{signed.key.split('_')[1]}, <time" in signed.browser.get(page).text
    late = signed.post(f"/jobs/{job}/marks", page=page, index="1", mark="starred")
    assert late.status_code == 409 and "The job has no done image 1." in late.text
    for wrong in ({"index": "x", "mark": "starred"}, {"mark": "starred"}):
        assert signed.post(f"/jobs/{job}/marks", page=page, **wrong).status_code == 422
    assert signed.post(f"/jobs/{job}/marks", page=page, index="0", mark="good").status_code == 404
    assert signed.browser.post(f"/jobs/{job}/marks", data={"index": "0", "mark": "none"}).status_code == 403
    assert marks(signed, job) == {0: "starred"}


def test_marks_decide_what_is_downloaded_and_exported_from_a_jobs_page(signed: House) -> None:
    job = signed.submit(*small(3))
    signed.render()
    assert "--mark" not in signed.browser.get(f"/jobs/{job}").text
    signed.http.put(f"/v1/jobs/{job}/marks", json={"mark": "accepted", "indexes": [1]})
    page = signed.browser.get(f"/jobs/{job}").text
    assert f"presswork download {job} --mark accepted" in page and "the 1 accepted" in page
    signed.post(f"/jobs/{job}/actions/export", page=f"/jobs/{job}", format="zip", mark="accepted")
    [export] = signed.http.get(f"/v1/jobs/{job}/exports").json()["data"]
    assert export["options"]["mark"] == "accepted"


def test_scores_decide_what_is_exported_from_a_jobs_page(signed: House) -> None:
    job = signed.submit(*small(3))
    page = f"/jobs/{job}"
    assert 'name="scores"' not in signed.browser.get(page).text  # nothing is scored yet
    signed.render()
    assert 'name="scores"' in signed.browser.get(page).text
    form = {"page": page, "format": "zip"}
    refused = signed.post(f"{page}/actions/export", **form, scores="sharpness>0.1")
    assert refused.status_code == 422 and "options.scores" in refused.text
    signed.post(f"{page}/actions/export", **form, scores=" sharpness>=0.1, uniform<=0.9 ")
    signed.post(f"{page}/actions/export", **form, scores="")
    found = signed.http.get(f"/v1/jobs/{job}/exports").json()["data"]
    assert sorted(export["options"]["scores"] for export in found) == [[], ["sharpness>=0.1", "uniform<=0.9"]]
    assert '<span class="label">sharpness&gt;=0.1</span>' in signed.browser.get(page).text


def test_a_key_that_may_only_look_marks_nothing(signed: House) -> None:
    job = signed.submit(*small())
    signed.render()
    with signed.api.database.begin_system() as connection:
        given = (Scope.VIEW,)
        signed.key = api_keys.issue_key(connection, signed.api.settings.secret, signed.tenant, "guest", given=given)
    signed.browser.cookies.clear()
    signed.sign_in()
    for path in (f"/jobs/{job}", f"/jobs/{job}/images", f"/jobs/{job}/images/0"):
        page = signed.browser.get(path)
        assert page.status_code == 200 and "/marks" not in page.text, path
    assert signed.browser.get(f"/jobs/{job}/marks/accepted").status_code == 403
    for path in ("", "/accepted"):
        answer = signed.post(f"/jobs/{job}/marks{path}", page="/jobs", index="0", mark="accepted")
        assert answer.status_code == 403 and "Not allowed" in answer.text
    assert marks(signed, job) == {}


def test_what_a_policy_refused_offers_no_retry_and_says_why(signed: House) -> None:
    job = signed.submit(*small(3))
    signed.render(failed=[1], code="content_policy")
    for path, said in (("images/1", "refused this image"), ("images?cause=content_policy", "refused these images")):
        page = signed.browser.get(f"/jobs/{job}/{path}").text
        assert f"A content policy {said}, so" in page and "/actions/retry" not in page, path


def test_an_image_shows_its_attempts_and_is_retried_alone_with_its_cause_or_with_all(signed: House) -> None:
    job = signed.submit(*small(5))
    signed.render(most=4, failed=[1, 2, 3])
    page = f"/jobs/{job}/images/1"
    shown = signed.browser.get(page).text
    assert "it broke" in shown and "among 4 images" in shown and "worker-a" in shown and "host device" in shown
    assert "Retry this image" not in shown  # the job has not finished
    assert "Attempts" not in signed.browser.get(f"/jobs/{job}/images/0").text
    signed.render(failed=[4], message="another")
    assert "Retry this image" in signed.browser.get(page).text
    for query, which, count in (
        ("?index=1", {"index": "1"}, 1),
        ("?cause=render_error", {"cause": "render_error"}, 4),
        ("", {}, 4),
    ):
        ask = f"/jobs/{job}/actions/retry{query}"
        said = signed.browser.get(ask).text
        assert "The failed image 1 becomes" in said if query == "?index=1" else f"{count} " in said
        child = signed.post(f"/jobs/{job}/actions/retry", page=ask, **which).headers["Location"]
        assert signed.http.get(f"/v1{child}").json()["counts"]["total"] == count
    assert (
        f"/jobs/{job}/actions/retry?cause=render_error"
        in signed.browser.get(f"/jobs/{job}/images?cause=render_error").text
    )
    for wrong in ({"index": "x"}, {"cause": "c" * 65}):
        assert signed.post(f"/jobs/{job}/actions/retry", page=page, **wrong).status_code == 422
    assert signed.post(f"/jobs/{job}/actions/retry", page=page, index="0").status_code == 409


def test_a_custom_id_is_found_in_all_jobs_page_by_page(signed: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_PER_PAGE", 2)
    jobs = [signed.submit({"prompt": "a mug", "size": "64x64", "custom_id": "only-here"}) for _ in range(3)]
    theirs = signed.api.submit({"prompt": "of others", "size": "64x64", "custom_id": "only-here"})["id"]
    first = signed.browser.get("/images?custom_id=only-here").text
    [more] = re.findall(r'class="button" href="([^"]+)"', first)
    rest = signed.browser.get(more.replace("&amp;", "&")).text
    assert [re.findall(r'<a class="small" href="/jobs/(\w+)"', page) for page in (first, rest)] == [
        jobs[:0:-1], jobs[:1],
    ]  # fmt: skip
    assert str(theirs) not in first + rest
    assert "No request has the custom_id" in signed.browser.get("/images?custom_id=only").text
    assert signed.browser.get("/images").status_code == 200
    assert signed.browser.get("/images?custom_id=other&cursor=x").status_code == 400


def test_a_job_and_an_image_are_submitted_again_by_what_their_pages_say(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_AT_ONCE", 2)
    asked: list[dict[str, object]] = [
        {"prompt": 'it\'s "a" mug', "n": 3, "size": "64x64", "custom_id": "m", "metadata": {"a": 1}},
        {"prompt": "äpfel\n", "size": "256x256", "num_inference_steps": 3, "guidance_scale": 1.5, "seed": 2**63 - 1},
        {"prompt": "c", "negative_prompt": "d", "output_format": "jpeg", "output_compression": 7, "size": "64x64"},
    ]
    job = signed.submit(*asked, priority="low", labels={"run": "it's"})
    page = html.unescape(signed.browser.get(f"/jobs/{job}").text)
    assert f"{job}.jsonl --priority low --label 'run=it'\"'\"'s' --watch" in page
    assert "/v1/jobs?priority=low' -H" in page and "priority='low', labels={'run': \"it's\"}" in page
    file = signed.browser.get(f"/jobs/{job}/requests.jsonl")
    assert file.headers["Content-Disposition"] == f'attachment; filename="{job}.jsonl"'
    headers = {"Content-Type": "application/x-ndjson"}
    again = signed.http.post("/v1/jobs?priority=low", content=file.content, headers=headers).json()["id"]
    wanted = stored(signed, job)
    assert len(wanted) == 3 and stored(signed, again) == wanted
    wanted[0] |= {"n": 1, "seed": wanted[0]["seed"] + 1}
    for index, nth in ((1, 0), (3, 1), (4, 2)):
        page = signed.browser.get(f"/jobs/{job}/images/{index}").text
        [command] = re.findall(r"<pre[^>]*>(printf .*?)\npresswork submit", html.unescape(page), re.DOTALL)
        line = shlex.split(command)[2]
        one = signed.http.post("/v1/jobs", content=line, headers=headers).json()["id"]
        assert stored(signed, one) == [wanted[nth]]
    assert signed.browser.get("/jobs/job_0000000000000/requests.jsonl").status_code == 404


def stored(house: House, job: str) -> list[dict[str, Any]]:
    """The job's requests as they are stored, with what they are rendered with."""
    columns = "prompt, negative_prompt, custom_id, seed, n, guidance_scale, output_format, output_compression"
    statement = text(
        f"SELECT {columns}, metadata, {SHAPE} FROM payloads p JOIN segments s "
        "ON s.job_id = p.job_id AND s.id = p.segment_id WHERE p.job_id = :id ORDER BY index"
    )
    with house.api.database.begin_system() as connection:
        return [dict(row) for row in connection.execute(statement, {"id": ids.parse_job(job)}).mappings()]


def focus(page: Page) -> str:
    return str(page.evaluate("document.activeElement.closest('li')?.id ?? document.activeElement.tagName"))


def test_pictures_are_marked_by_keyboard_in_the_gallery_and_large(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(5))
    house.render(failed=[4])
    tab = open_tab()
    page = tab.open(f"/jobs/{job}/images?state=done")
    page.locator("#image-0 a").focus()
    page.keyboard.press("a")
    expect(page.locator("#image-0 .badge")).to_have_text("accepted")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("s")
    expect(page.locator("#image-1 .badge")).to_have_text("starred")
    page.keyboard.press("u")
    expect(page.locator("#image-1 .badge")).to_be_empty()
    page.keyboard.press("Enter")
    large = page.locator("#lightbox[open]")
    expect(large.locator("h1")).to_contain_text("Image 1")
    page.keyboard.press("ArrowRight")
    expect(large.locator("h1")).to_contain_text("Image 2")
    page.keyboard.press("r")
    expect(large.locator(".marking")).to_contain_text(f"Rejected by key/{house.key.split('_')[1]}")
    large.get_by_role("button", name="Star").click()
    expect(large.locator(".marking")).to_contain_text("Starred by")
    assert tab.violations() == []
    page.keyboard.press("Escape")
    assert focus(page) == "image-2"
    assert marks(house, job) == {0: "accepted", 2: "starred"}
    page.keyboard.press("?")
    expect(page.locator("#keys[open]")).to_be_visible()
    assert tab.violations() == []
    page.locator("#single-keys").uncheck()
    page.keyboard.press("Escape")
    page.locator("#image-3 a").focus()
    page.keyboard.press("a")
    page.keyboard.press("ArrowLeft")
    assert focus(page) == "image-2"
    assert 3 not in marks(house, job)
    assert tab.errors == []


def test_a_gallery_shows_what_others_mark_and_a_marked_one_leaves_the_unmarked(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    job = house.submit(*small(3))
    house.render()
    page = open_tab().open(f"/jobs/{job}/images?mark=none")
    page.locator("#live .dot").wait_for()
    page.locator("#image-1 a").focus()
    house.http.put(f"/v1/jobs/{job}/marks", json={"mark": "accepted", "indexes": [1]})
    house.tick()
    expect(page.locator("#image-1")).to_have_count(0, timeout=30_000)
    assert focus(page) == "image-2"
    page.get_by_role("link", name="Reject", exact=True).click()
    page.locator("dialog[open]").get_by_text("2 unmarked images become rejected.").wait_for()
    page.locator("dialog[open]").get_by_role("button", name="Reject").click()
    page.get_by_text("No image is unmarked.").wait_for()
    assert marks(house, job) == {0: "rejected", 1: "accepted", 2: "rejected"}


def test_the_picture_behind_the_last_of_a_page_is_on_the_next_page(
    house: House, open_tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_PER_PAGE", 2)
    job = house.submit(*small(3))
    house.render()
    page = open_tab().open(f"/jobs/{job}/images")
    page.locator("#image-1 a").click()
    expect(page.locator("#lightbox[open] h1")).to_contain_text("Image 1")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#lightbox[open] h1")).to_contain_text("Image 2")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#image-2 a")).to_be_focused()
