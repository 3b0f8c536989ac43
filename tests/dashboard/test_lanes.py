"""The page of the lanes."""

from services.core.model.scopes import Scope
from tests.dashboard.test_fleet import guest
from tests.pages import House


def test_lanes_show_what_waits_of_this_tenant_or_of_all(signed: House) -> None:
    signed.submit({"prompt": "a", "n": 1000, "size": "64x64"}, priority="high")
    theirs = signed.api.submit({"prompt": "b", "size": "256x256"})
    page = signed.browser.get("/lanes").text
    assert "64×64" in page and "256×256" in page and "of all tenants" in page
    guest(signed, Scope.VIEW)
    page = signed.browser.get("/lanes").text
    assert "1,000 images wait" in page and "256×256" not in page and "Tenant" not in page
    assert "1 × cpu" in page or "nobody that is up" in page
    guest(signed, Scope.SUBMIT)
    assert signed.browser.get("/lanes").status_code == 403
    signed.api.http.post(f"/v1/jobs/{theirs['id']}/cancel")
