"""Licences: read from a model's card, with what they forbid, and never guessed."""

from pathlib import Path

import pytest

from services.core.model import licenses
from worker.model import directory, model_card


def card(folder: Path, text: str) -> licenses.License | None:
    (folder / "README.md").write_text(text)
    return model_card.read_license(folder, "some/model")


@pytest.mark.parametrize(
    ("head", "identifier"),
    [
        ("license: openrail++\ntags: [a]", "openrail++"),
        ('tags:\n- license: no\nlicense: "CreativeML-OpenRAIL-M"  # the usual one', "creativeml-openrail-m"),
        ("license:\n  - mit\n  - other", "mit"),
        ("license: [apache-2.0]", "apache-2.0"),
    ],
)
def test_the_head_of_the_card_names_the_licence(tmp_path: Path, head: str, identifier: str) -> None:
    found = card(tmp_path, f"\ufeff---\n{head}\n---\n# Text\nlicense: of something else\n")
    assert found is not None and found.id == identifier and found.link.startswith("https://")
    assert bool(found.restrictions) is ("rail" in identifier)


@pytest.mark.parametrize("text", ["", "# A model\nlicense: mit\n", "---\nlicense: mit\nno end", "---\ntags: x\n---\n"])
def test_a_card_that_does_not_say_names_none(tmp_path: Path, text: str) -> None:
    assert card(tmp_path, text) is None


def test_another_licence_has_the_name_and_link_of_its_card(tmp_path: Path) -> None:
    found = card(tmp_path, "---\nlicense: other\nlicense_name: house-rules\nlicense_link: https://x.org/l\n---\n")
    assert found == licenses.License("other", "house-rules", "https://x.org/l", ())
    assert licenses.License.from_json(found.as_json()) == found


def test_decidiffusion_without_its_card_has_its_publisher_s_licence(tmp_path: Path) -> None:
    found = model_card.read_license(tmp_path, "Deci/DeciDiffusion-v2-0")
    assert found is not None and found.name == "CreativeML Open RAIL++-M"
    assert len(found.restrictions) == len(licenses.OPEN_RAIL_M) == 11
    assert model_card.read_license(tmp_path, "tiny") is None


def test_the_shipped_model_says_its_licence() -> None:
    found = directory.read_index(directory.locate(directory.SHIPPED)).license
    assert found is not None and found.id == "apache-2.0"
