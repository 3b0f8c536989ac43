"""Matrices: how many requests they span, which, and what is refused before anything is spanned."""

import itertools
import resource
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.core.model import templates
from services.core.model.templates import Matrix

LIMIT = 2_000_000


def spanned(most: int = LIMIT, defaults: dict[str, Any] | None = None, **matrix: Any) -> Matrix:
    found, problems = templates.read(matrix, defaults or {}, most)
    assert found is not None, problems
    return found


def refusal(most: int = LIMIT, **matrix: Any) -> tuple[str, str]:
    found, problems = templates.read(matrix, {}, most)
    assert found is None
    [problem] = problems
    return problem.code, f"{problem.param}: {problem.message}"


def prompts(template: str, **vary: list[Any]) -> list[str]:
    return [request["prompt"] for request in spanned(template=template, vary=vary).requests()]


def test_every_combination_is_one_request_the_last_name_varying_fastest() -> None:
    assert prompts("a {colour} {thing}", colour=["red", "blue"], thing=["mug", "jug"]) == [
        "a red mug", "a red jug", "a blue mug", "a blue jug",
    ]  # fmt: skip


def test_a_name_that_is_a_field_and_stands_in_no_template_sets_it() -> None:
    matrix = spanned(
        template="a {colour} mug",
        negative_template="no {colour}",
        vary={"colour": ["red"], "guidance_scale": [5, 7.5], "size": ["64x64"]},
        repeat=4,
        seed=7,
    )
    assert (matrix.combinations, matrix.images) == (2, 8)
    common = {"prompt": "a red mug", "negative_prompt": "no red", "size": "64x64", "n": 4, "seed": 7}
    assert list(matrix.requests()) == [common | {"guidance_scale": 5}, common | {"guidance_scale": 7.5}]


def test_a_fields_name_in_the_template_is_only_a_name() -> None:
    matrix = spanned(template="a picture of {size} {prompt}", vary={"size": ["big", 5], "prompt": ["mugs"]})
    assert list(matrix.requests()) == [{"prompt": "a picture of big mugs"}, {"prompt": "a picture of 5 mugs"}]


def test_zip_takes_the_lists_side_by_side() -> None:
    matrix = spanned(template="{a} {b}", vary={"a": ["1", "2"], "b": ["x", "y"]}, combine="zip")
    assert matrix.combinations == 2
    assert [request["prompt"] for request in matrix.requests()] == ["1 x", "2 y"]
    code, said = refusal(template="{a} {b}", vary={"a": ["1", "2"], "b": ["x"]}, combine="zip")
    assert code == "invalid_value" and "a has 2, b has 1" in said


def test_images_are_counted_with_the_defaults_n_unless_the_matrix_repeats() -> None:
    assert spanned(template="{a}", vary={"a": ["x", "y"]}, defaults={"n": 3}).images == 6
    assert spanned(template="{a}", vary={"a": ["x", "y"]}, defaults={"n": 3}, repeat=2).images == 4


def test_a_billion_combinations_are_refused_before_anything_is_made_of_them() -> None:
    values = [str(number) for number in range(1000)]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    code, said = refusal(template="{a}{b}{c}", vary=dict.fromkeys("abc", values))
    assert code == "too_many_images" and "1,000,000,000 images" in said and "2,000,000" in said
    wide = {f"n{number}": values for number in range(32)}
    code, said = refusal(template="".join(f"{{{name}}}" for name in wide), vary=wide)
    assert code == "too_many_images" and "more than 10^15" in said
    assert time.process_time() - began < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # kibibytes


def test_requests_are_made_one_at_a_time() -> None:
    values = [str(number) for number in range(1000)]
    matrix = spanned(10**9, template="{a}{b}{c}", vary=dict.fromkeys("abc", values))
    assert [request["prompt"] for request in itertools.islice(matrix.requests(), 2)] == ["000", "001"]


def test_doubled_braces_are_braces_and_values_are_never_templates() -> None:
    assert prompts("{{a}} {a} }}{{", a=["{a} {0.__class__} %s ${x} }"]) == ["{a} {a} {0.__class__} %s ${x} } }{"]


@pytest.mark.parametrize(
    "template",
    ["{0.__class__}", "{a.__class__}", "{a[0]}", "{a!r}", "{a:>99999999}", "{", "}", "{a", "a}", "{}", "{ a }", "{{a}",
     "{{{a}}", "{a}}", "{0}", "{ä}", "{" + "a" * 65 + "}"],
)  # fmt: skip
def test_a_brace_that_belongs_to_no_name_is_refused_with_its_place(template: str) -> None:
    code, said = refusal(template=template, vary={"a": ["x"]})
    assert code == "invalid_template" and "at character" in said


@given(st.text(alphabet="{}ab.0_ ", max_size=30))
def test_any_template_is_refused_or_put_together_as_written(template: str) -> None:
    found, problems = templates.read({"template": template, "vary": {"a": ["{b}"], "seed": [1]}}, {}, LIMIT)
    if found is None:
        assert problems[0].code in ("invalid_template", "unknown_name", "unused_name")
        return
    assume("}}}" not in template)
    plain = template.replace("{{", "\x01").replace("}}", "\x02").replace("{a}", "{b}")
    assert next(found.requests())["prompt"] == plain.replace("\x01", "{").replace("\x02", "}")


@pytest.mark.parametrize(
    ("matrix", "code", "said"),
    [
        ({"vary": {"a": ["x"]}}, "missing_field", "matrix.template is missing"),
        ({"template": "{a}"}, "missing_field", "matrix.vary is missing"),
        ({"template": 5, "vary": {"a": ["x"]}}, "wrong_type", "matrix.template is 5"),
        ({"template": "x" * 2001, "vary": {"seed": [1]}}, "too_long", "matrix.template"),
        ({"template": "{a}", "vary": {}}, "invalid_value", "1 to 32 names"),
        ({"template": "{a}", "vary": []}, "wrong_type", "a list"),
        ({"template": "{a}", "vary": {"a": []}}, "wrong_type", "matrix.vary.a is empty"),
        ({"template": "{a}", "vary": {"a": "x"}}, "wrong_type", "matrix.vary.a"),
        ({"template": "{a}", "vary": {"a": [None]}}, "wrong_type", "matrix.vary.a[0] is null"),
        ({"template": "{a}", "vary": {"a": ["x", True]}}, "wrong_type", "matrix.vary.a[1] is true"),
        ({"template": "{a}", "vary": {"a": ["x" * 2001]}}, "too_long", "2,001 characters"),
        ({"template": "{a}", "vary": {"a b": ["x"]}}, "invalid_value", "letters, digits and _"),
        ({"template": "{a}", "vary": {f"n{n}": [1] for n in range(33)}}, "invalid_value", "1 to 32 names"),
        ({"template": "{a} {b}", "vary": {"a": ["x"]}}, "unknown_name", "{b}"),
        ({"template": "{a}", "vary": {"a": ["x"], "color": ["y"]}}, "unused_name", "matrix.vary.color"),
        ({"template": "{a}", "vary": {"a": ["x"], "n": [2]}}, "unused_name", "matrix.vary.n"),
        ({"template": "{a}", "vary": {"a": ["x"], "guidance_scale": [99]}}, "invalid_value", "from 0 to 50"),
        ({"template": "{a}", "vary": {"a": ["x"], "seed": [1.5]}}, "wrong_type", "matrix.vary.seed[0] is 1.5"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "repeat": 0}, "invalid_value", "matrix.repeat is 0"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "repeat": 1001}, "invalid_value", "1 to 1,000"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "seed": -1}, "invalid_value", "matrix.seed is -1"),
        ({"template": "{a}", "vary": {"a": ["x"], "seed": [1]}, "seed": 1}, "invalid_value", "twice"),
        ({"template": "{a}", "negative_template": "x", "vary": {"a": ["x"], "negative_prompt": ["y"]}},
         "invalid_value", "twice"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "combine": "cross"}, "invalid_value", "product"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "combine": []}, "invalid_value", "product"),
        ({"template": "{a}", "vary": {"a": ["x"]}, "times": 1}, "unknown_field", "times"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_matrix_is_reported(matrix: dict[str, Any], code: str, said: str) -> None:
    found = refusal(**matrix)
    assert found[0] == code
    assert said in found[1]
