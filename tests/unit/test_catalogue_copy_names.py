"""Names at the place that a catalogue is copied to: an id is never a path, and what is no plain key is refused."""

import pytest

from services.core.catalogues.copy_names import USUAL, Names
from services.core.catalogues.templates import Inapplicable

SUM = bytes(range(32))


@pytest.mark.parametrize("item", ["../x", "a/b", "/", "..", ".", "a//b", "ü", "%2e%2e", "a b", "\\", "~YQ", "x" * 500])
def test_no_id_makes_a_path(item: str) -> None:
    name = Names("{{ variant }}/{{ item }}.{{ extension }}").of(item, "front", SUM, "jpeg")
    folder, _, last = name.partition("/")
    assert folder == "front"
    assert "/" not in last
    assert last.startswith("~")
    assert last.endswith(".jpg")


def test_the_usual_name_tells_item_variant_and_bytes() -> None:
    assert Names(USUAL).of("SKU-1", "front", SUM, "png") == f"front/SKU-1-{SUM.hex()}.png"


@pytest.mark.parametrize(
    "template",
    [
        "/{{ item }}", "{{ item }}/", "a//{{ item }}", "../{{ item }}", "{{ item }}/..", "./{{ item }}",
        "a b {{ item }}", "{{ item }}\\", "{{ item | replace: 'x', '../' }}", "{{ item | replace: 'x', '' }}/a",
        "current.json", "manifests/{{ item }}", "{{ item }}%2f", "{% for i in (1..99) %}{{ sha256 }}{% endfor %}",
    ],
)  # fmt: skip
def test_what_is_no_plain_key_is_refused(template: str) -> None:
    with pytest.raises(Inapplicable, match="The name ") as caught:
        Names(template).of("x", "front", SUM, "png")
    assert caught.value.code == "bad_name"
