"""The last part of a public link: one name for each id, which every client passes on unharmed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.catalogues import names


@pytest.mark.parametrize("item", ["a", "SKU-1_b", "1.5", "x" * 200, "-", "_"])
def test_an_id_of_plain_characters_is_its_name(item: str) -> None:
    assert names.of_item(item) == item
    assert names.item(item) == item


@pytest.mark.parametrize("item", [".", "..", ".a", "a.", "../x", "a/b", "ü", "%2e", "a b", "~YQ", "x" * 201, "a?b#c"])
def test_any_other_id_is_encoded(item: str) -> None:
    name = names.of_item(item)
    assert name.startswith("~")
    assert names.item(name) == item


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_every_id_has_a_name_and_gets_it_back(item: str) -> None:
    assert names.item(names.of_item(item)) == item


@pytest.mark.parametrize("name", ["", "a/b", "..", "~", "~YQ", "~YQ==", "~Y Q", "~_w", "~ü", "~AA", "~Li4=", "~L.i4"])
def test_nothing_else_is_a_name(name: str) -> None:
    """~YQ would be a second name of `a`, ~_w is no text, and ~AA holds U+0000."""
    assert names.item(name) is None
