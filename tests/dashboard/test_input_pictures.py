"""An image's page shows what it was drawn from, to those whose it is."""

import io

import httpx
from PIL import Image

from tests.pages import House


def photograph() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((120, 80)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_an_images_page_shows_its_input_as_the_model_got_it(signed: House):
    files = {"file": ("photo.png", photograph())}
    file = signed.http.post("/v1/files", files=files, data={"purpose": "vision"}).json()["id"]
    fields = {"prompt": "a mug", "size": "64x64", "strength": 0.5}
    job = signed.submit({**fields, "image": file}, {"prompt": "a jug", "size": "64x64"})
    signed.render()
    page = signed.browser.get(f"/jobs/{job}/images/0").text
    assert f"/jobs/{job}/images/0/input" in page
    assert file in page
    shown = signed.browser.get(f"/jobs/{job}/images/0/input")
    assert shown.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(shown.content)).size == (64, 64)  # cropped from 120 x 80
    same = signed.browser.get(f"/jobs/{job}/images/0/input", headers={"If-None-Match": shown.headers["etag"]})
    assert same.status_code == 304
    assert "/input" not in signed.browser.get(f"/jobs/{job}/images/1").text
    for path in (f"{job}/images/1", f"{job}/images/9", f"{job}/images/x"):
        assert signed.browser.get(f"/jobs/{path}/input").status_code == 404
    again = signed.submit({**fields, "image": f"{job}/0"})
    assert f'href="/jobs/{job}/images/0"' in signed.browser.get(f"/jobs/{again}/images/0").text
    _, key = signed.api.new_tenant(f"stranger to {job}")
    with httpx.Client(base_url=signed.url, trust_env=False) as other:
        stranger = House(signed.api, 0, key, signed.http, other)
        stranger.sign_in()
        assert other.get(f"/jobs/{job}/images/0").status_code == 404
        assert other.get(f"/jobs/{job}/images/0/input").status_code == 404
