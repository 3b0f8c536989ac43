"""Templates of a catalogue: what they read, what they refuse, and that none takes more than its share."""

import time
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest

from services.core.catalogues.templates import BadTemplate, Condition, Inapplicable, Template

FIELDS: dict[str, Any] = {"title": "mug", "colour": None, "stock": "1,5", "tags": ["a", "b"], "Product Name": "X"}
DOUBLED = "{% assign a = a | append: a %}"


def rendered(source: str, **fields: Any) -> str:
    return Template(source).render(FIELDS | fields)


def refused(source: str, **fields: Any) -> str:
    with pytest.raises(Inapplicable) as caught:
        rendered(source, **fields)
    return f"{caught.value.code}: {caught.value}"


def test_a_template_reads_the_fields_of_an_item_and_names_them() -> None:
    source = (
        " a {{ colour | default: 'plain' }} {{ title | upcase }}{% for tag in tags %} {{ tag }}{% endfor %}"
        "{% if stock > 1 %}, in stock{% endif %} {{ ['Product Name'] }} "
    )
    assert rendered(source) == "a plain MUG a b, in stock X"
    assert Template(source).fields == {"title", "colour", "stock", "tags", "Product Name"}
    assert rendered("{{ size.wide }} {{ missing | default: 'none' }}", size={"wide": 3}) == "3 none"


def test_texts_that_show_numbers_are_numbers_where_they_are_compared_or_counted_with() -> None:
    for stock in ("3", "3,0", 3, 3.0, Decimal("3.00")):
        assert rendered("{% if stock == 3 and stock > 2.5 and 10 >= stock %}yes{% endif %}", stock=stock) == "yes"
    assert rendered("{{ stock | times: 2 }}", stock=Decimal("1.50")) == rendered("{{ stock | times: 2 }}") == "3.0"
    assert rendered("{{ stock }}", stock="007") == "007"
    for stock in (None, "0", "-1"):
        assert rendered("{% if stock > 0 %}yes{% endif %}", stock=stock) == ""
    assert 'stock is "many", which shows no number' in refused("{% if stock > 0 %}{% endif %}", stock="many")
    assert rendered("{% if stock == 0 %}yes{% else %}no{% endif %}", stock="many") == "no"


def test_a_condition_is_an_expression_of_the_same_language() -> None:
    condition = Condition("stock > 0 and not (colour == 'red' or gone == true)")
    assert condition.fields == {"stock", "colour", "gone"}
    assert condition.holds({"stock": "3", "colour": "blue", "gone": "FALSE"})
    assert not condition.holds({"stock": "3", "colour": "blue", "gone": True})
    assert not condition.holds({"stock": "3", "colour": "red", "gone": None})
    with pytest.raises(Inapplicable, match="'colour' is undefined"):
        condition.holds({"stock": "3", "gone": "false"})
    for source in ("", "stock >", "stock > 0 %}{{ x }}", "a = 1", "1 | plus: 2", "stock > 0 extra", "[a[b]] == 1"):
        with pytest.raises(BadTemplate):
            Condition(source)


def test_what_an_item_does_not_have_is_named() -> None:
    for source in ("{{ x }}", "{% if x %}{% endif %}", "{% if x == 'a' %}{% endif %}", "{% for y in x %}{% endfor %}"):
        assert refused(source) == "unknown_field: It has no such field: 'x' is undefined."
    assert "title.y is undefined" in refused("{{ title.y }}")
    assert refused("{{ now }}{{ today }}").startswith("unknown_field")
    assert "title.__class__ is undefined" in refused("{{ title.__class__ }}")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ x", "expected '}}', found end of file at line 1, column 1"),
        ("a\n{% if %}{% endif %}", "at line 2, column"),
        ("{% include 'x' %}", "unexpected tag 'include'"),
        ("{{ 'now' | date: '%Y' }}", 'There is no filter "date".'),
        ("{{ x | uppcase }}", "did you mean upcase?"),
        ("x" * 4_001, "It has 4,001 characters; 4,000 are allowed."),
        ("{{" * 200, "It has more than 100 of {{."),
        ("{{ " + "a[" * 900 + "b" + "]" * 900 + " }}", "It has more than 100 of [."),
        ("{% if " + "(" * 99 + " %}", "It is not valid Liquid"),
        ("{% liquid " + "if true\n" * 400 + " %}", "block nesting limit"),
    ],
)
def test_what_is_no_template_is_refused_with_its_place(source: str, sentence: str) -> None:
    with pytest.raises(BadTemplate) as caught:
        Template(source)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("{% for i in (1..100000000) %}x{% endfor %}", {}),
        ("{% for i in (1..900) %}{% for j in (1..900) %}{% endfor %}{% endfor %}", {}),
        ("{% for i in (1..900) %}{% endfor %}" * 20, {}),
        ("{{ (1..1000000000) | join: ',' }}", {}),
        ("{% assign a = 'x' %}" + DOUBLED * 60, {}),
        ("{{ 'x' " + "| replace: 'x', 'xxxxxxxxxxxxxxxxxxxx' " * 60 + "}}", {}),
        ("{{ a | replace: 'y', a }}", {"a": "y" * 16_000}),
        ("{{ a | split: '' | join: a }}", {"a": "y" * 150}),
        ("{% assign a = 999999999999999999999 %}" + "{% assign a = a | times: a %}" * 60, {}),
        ("{% capture a %}xxxxxxxx{% endcapture %}" + "{% capture a %}{{ a }}{{ a }}{{ a }}{% endcapture %}" * 18, {}),
        ("{% assign a = tags %}" + "{% assign a = a | concat: a %}" * 60, {}),
        ("{{ a | floor }}", {"a": "1e999999999"}),
        ("{{ a }}", {"a": "y" * 100_000}),
    ],
)
def test_a_hostile_template_ends_early_and_takes_little_memory(source: str, fields: dict[str, Any]) -> None:
    tracemalloc.start()
    try:
        assert refused(source, **fields).startswith(("template_limit", "template_failed: The template cannot be app"))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_the_slowest_templates_end_within_a_second() -> None:
    slowest = [
        ("{% for i in (1..999) %}" + "{% if 1 == 1 %}{% endif %}" * 49 + "{% endfor %}", ""),
        ("{% assign l = x | split: '' %}" + "{% assign u = l | uniq %}" * 90, "abcdefghijklmnopqrstuvwxyz" * 7),
        ("{{ x | strip_html }}" * 49, "<" * 300 + ">"),
        ("{{ x | strip_html }}", "<" * 16_000 + ">"),
    ]
    for source, text in slowest:
        began = time.process_time()
        rendered(source, x=text)
        assert time.process_time() - began < 1, source[:40]
