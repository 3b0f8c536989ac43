"""The form of a submission redraws pictures: one is uploaded or named, looked at, and made again from elsewhere."""

import io
import json
import re
import shlex
from collections.abc import Callable

import httpx
from PIL import Image
from playwright.sync_api import expect

from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from services.dashboard import asked, commands
from tests.dashboard.test_input_pictures import photograph
from tests.dashboard.test_submit import problems, requests, send
from tests.pages import House, Tab


def upload(house: House, data: bytes = photograph(), kind: str = "prompt") -> httpx.Response:
    form = house.browser.get("/submit").text
    fields = {"csrf": re.findall(r'name="csrf" value="(\w+)"', form)[-1], "kind": kind}
    return house.browser.post("/submit/picture", data=fields, files={"picture": ("photo.png", data)})


def named(page: str) -> str:
    """What the form redraws."""
    [found] = re.findall(r'id="image" name="image" value="([^"]*)"', page)
    return str(found)


def test_an_uploaded_picture_is_shown_as_the_model_gets_it_and_redrawn(signed: House):
    page = upload(signed)
    file = named(page.text)
    assert page.status_code == 200 and file.startswith("file-")
    form = {"prompt": "a mug", "size": "64x64", "image": file, "strength": "0,5"}
    before = signed.api.rows()
    looked = send(signed, "/submit/preview", **form).text
    assert signed.api.rows() == before
    [address] = re.findall(r'src="(/submit/picture[^"]*)"', looked)
    shown = signed.browser.get(address.replace("&amp;", "&"))
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)  # cropped from 120 x 80
    assert "5 steps are rendered" in looked
    [request] = requests(signed, send(signed, **form))
    assert (request["image"], request["strength"]) == (file, 0.5)
    for image, size in ((file, "63x64"), ("file-0000000000000", "64x64"), ("data:", "64x64")):
        assert signed.browser.get("/submit/picture", params={"image": image, "size": size}).status_code == 404


def test_pictures_and_strengths_vary_in_a_template_and_fill_up_the_rows_of_a_file(signed: House):
    one, two = (named(upload(signed, data).text) for data in (photograph(), photograph()))
    form = {
        "kind": "template",
        "template": "a mug",
        "size": "64x64",
        "vary": f"image = {one}, {two}\nstrength = 0.3, 0.9",
    }
    looked = send(signed, "/submit/preview", **form).text
    assert looked.count('src="/submit/picture') == 2 and "3 to 9 steps are rendered" in looked
    found = requests(signed, send(signed, **form))
    assert [(row["image"], row["strength"]) for row in found] == [(one, 0.3), (one, 0.9), (two, 0.3), (two, 0.9)]
    rows = "\n".join(json.dumps(row) for row in ({"prompt": "a"}, {"prompt": "b", "image": two, "strength": 0.4}))
    answer = send(signed, file=("p.jsonl", rows.encode()), kind="file", size="64x64", image=one, strength="0.6")
    assert [(row["image"], row["strength"]) for row in requests(signed, answer)] == [(one, 0.6), (two, 0.4)]


def test_a_picture_that_is_none_is_refused_in_a_sentence(signed: House):
    answer = upload(signed, b"no picture")
    assert (answer.status_code, problems(answer)) == (400, ["The file is not a PNG, JPEG or WebP picture."])
    missing = (
        'image is "file-0000000000000"; it must be a file of purpose "vision", or an image that is done, of your own.'
    )
    for path in ("/submit/preview", "/submit"):
        answer = send(signed, path, prompt="a", image="file-0000000000000")
        assert problems(answer) == [missing]
    assert problems(send(signed, prompt="a", strength="0.5")) == ["strength is 0.5; it needs an image beside it."]
    varied = send(signed, "/submit/preview", kind="template", template="a mug", vary="image = file-0000000000000")
    assert problems(varied) == [missing]
    assert signed.http.get("/v1/jobs").json()["data"] == []


def test_others_see_no_picture_and_a_key_that_may_not_submit_uploads_none(signed: House):
    file = named(upload(signed).text)
    _, key = signed.api.new_tenant(f"stranger to {file}")
    with httpx.Client(base_url=signed.url, trust_env=False) as other:
        stranger = House(signed.api, 0, key, signed.http, other)
        stranger.sign_in()
        assert other.get("/submit/picture", params={"image": file, "size": "64x64"}).status_code == 404
        assert other.post("/submit/picture", data={"csrf": "0" * 64}, files={"picture": b"x"}).status_code == 403
    with signed.api.database.begin_system() as connection:
        given = (Scope.VIEW,)
        signed.key = api_keys.issue_key(connection, signed.api.settings.secret, signed.tenant, "guest", given=given)
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', signed.browser.get("/").text))
    signed.browser.cookies.clear()
    signed.sign_in()
    answer = signed.browser.post("/submit/picture", data={"csrf": token}, files={"picture": photograph()})
    assert answer.status_code == 403
    assert signed.browser.get("/submit/picture", params={"image": file, "size": "64x64"}).status_code == 403


def test_the_same_from_elsewhere_names_the_picture():
    form = {"kind": "prompt", "prompt": "a mug", "image": "job_0000000000000/7", "strength": "0.5"}
    order = asked.read(form)
    curl, command, python = (text for _, text in commands.same("http://x", order, ""))
    assert json.loads(shlex.split(curl)[-1]) == order.body
    assert order.body["images"][0]["strength"] == 0.5
    words = shlex.split(command)
    assert words[words.index("--image") + 1] == "job_0000000000000/7" and words[words.index("--strength") + 1] == "0.5"
    assert "'image': 'job_0000000000000/7', 'strength': 0.5" in python


def test_a_picture_is_chosen_in_the_browser_and_its_image_made_again(house: House, open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.open("/submit")
    page.get_by_label("Prompt", exact=True).fill("a mug")
    page.get_by_label("Size").select_option("64x64")
    page.get_by_text("Redraw a picture").press("Enter")
    picture = {"name": "photo.png", "mimeType": "image/png", "buffer": photograph()}
    page.get_by_label("Upload one").set_input_files(picture)
    expect(page.locator("#picture-hint")).to_contain_text("photo.png is file-")
    expect(page.get_by_role("img", name="What is redrawn")).to_be_visible()
    page.get_by_label("Strength").fill("0.5")
    expect(page.locator("#preview")).to_contain_text("5 steps are rendered")
    expect(page.locator("#preview pre").nth(1)).to_contain_text("--strength 0.5")
    assert tab.violations() == []
    page.get_by_label("Upload one").set_input_files(picture | {"buffer": b"none"})
    expect(page.locator("#picture-hint")).to_have_text("The file is not a PNG, JPEG or WebP picture.")
    page.get_by_role("button", name="Submit", exact=True).press("Enter")
    page.wait_for_url(re.compile("/jobs/job_"))
    job = page.url.rpartition("/")[2]
    house.render()
    page.goto(f"{house.url}/jobs/{job}/images/0")
    again = page.locator("pre").first.text_content()
    body = json.loads(shlex.split(again)[-1])
    assert body["images"][0]["image"].startswith("file-") and body["images"][0]["strength"] == 0.5
    other = house.submit(*body["images"])
    first, second = (house.http.get(f"/v1/jobs/{one}/requests").json()["data"][0] for one in (job, other))
    assert [first[name] for name in ("image", "strength")] == [second[name] for name in ("image", "strength")]
    drawn = [house.http.get(f"/v1/jobs/{one}/images").json()["data"][0]["seed"] for one in (job, other)]
    assert drawn[0] == drawn[1]
    page.get_by_role("link", name="Redraw").click()
    expect(page.get_by_label("Or name one")).to_have_value(f"{job}/0")
    assert all("400 (Bad Request)" in error for error in tab.errors), tab.errors  # of what was no picture
