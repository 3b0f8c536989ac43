"""What a client may ask for, and the sentences that refuse the rest."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.core.model import requests
from services.core.model.errors import Problem


def refusal(value: object) -> list[Problem]:
    with pytest.raises(ValidationError) as refused:
        requests.ImageRequest.model_validate(value)
    return requests.problems(refused.value, value, 3, "images[2].")


def test_a_prompt_alone_is_a_request() -> None:
    request = requests.ImageRequest.model_validate({"prompt": "a mug"})
    assert (request.n, request.output_format, request.negative_prompt) == (1, "png", "")
    assert request.seed is None and request.size is None and request.custom_id is None


def test_a_refusal_names_field_finding_allowance_and_place() -> None:
    [problem] = refusal({"prompt": "a mug", "seed": -1})
    assert problem == Problem(
        "invalid_value",
        "images[2].seed is -1; it must be a whole number from 0 to 9223372036854775807.",
        "images[2].seed",
        3,
    )


def test_all_problems_of_a_request_are_reported_at_once() -> None:
    found = refusal({"seed": "7", "n": 0, "colour": "red"})
    assert {problem.param: problem.code for problem in found} == {
        "images[2].prompt": "missing_field",
        "images[2].seed": "wrong_type",
        "images[2].n": "invalid_value",
        "images[2].colour": "unknown_field",
    }


@pytest.mark.parametrize("value", [None, 5, "a mug", [], [{"prompt": "x"}], True])
def test_what_is_no_object_is_refused_as_such(value: object) -> None:
    [problem] = refusal(value)
    assert problem.code == "wrong_type"
    assert "where a request object is expected" in problem.message


@pytest.mark.parametrize("field", sorted(set(requests.ImageRequest.model_fields)))
def test_null_is_no_way_to_leave_a_field_out(field: str) -> None:
    found = refusal({"prompt": "x", field: None})
    assert [problem.param for problem in found] == [f"images[2].{field}"]


@pytest.mark.parametrize("field", ["prompt", "custom_id"])
def test_defaults_hold_no_field_that_is_one_requests_own(field: str) -> None:
    with pytest.raises(ValidationError):
        requests.Defaults.model_validate({field: "x"})


def test_every_field_has_its_allowance_in_words() -> None:
    fields = {*requests.ImageRequest.model_fields, *requests.JobOptions.model_fields}
    assert fields <= set(requests.ALLOWED)


@pytest.mark.parametrize("letter", ["\x00", "\x08", "\x0b", "\r", "\x1b", "\x7f", "\x85", "\x9f", "\ud800", "\udfff"])  # noqa: PT014  ruff takes the last two for one
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model"])
def test_controls_and_surrogates_are_no_text(field: str, letter: str) -> None:
    [problem] = refusal({"prompt": "x", field: f"a{letter}b"})
    assert problem.code == "invalid_character"
    assert problem.message.isascii()


@pytest.mark.parametrize("value", ["a", "A-Z_0.9", "-", "_", "a" * 128, "console", "com10"])
def test_plain_ids_are_taken(value: str) -> None:
    assert requests.ImageRequest.model_validate({"prompt": "x", "custom_id": value}).custom_id == value


@pytest.mark.parametrize("value", ["", ".", "a.", ".a", "a b", "a/b", "a\\b", "NUL", "lpt1.png", "é", "a\n", "a" * 129])
def test_ids_that_could_be_paths_devices_or_headers_are_not(value: str) -> None:
    [problem] = refusal({"prompt": "x", "custom_id": value})
    assert problem.param == "images[2].custom_id"


@given(st.text(min_size=1, max_size=40))
def test_any_other_name_is_an_unknown_field(name: str) -> None:
    if name in requests.ImageRequest.model_fields:
        return
    [problem] = refusal({"prompt": "x", name: 1})
    assert problem.code == "unknown_field"
    assert problem.message.isascii() and (problem.param or "").isascii()


Anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*requests.ImageRequest.model_fields, "other"]), Anything))
def test_whatever_stands_in_a_field_it_is_taken_or_refused_and_never_breaks(value: dict[str, Any]) -> None:
    try:
        request = requests.ImageRequest.model_validate(value)
    except ValidationError as error:
        for problem in requests.problems(error, value, 1):
            assert problem.message.isascii() and len(problem.message) < 500
        return
    assert 0 < len(request.prompt) <= requests.PROMPT_LIMIT
    assert 1 <= request.n <= requests.IMAGES_PER_REQUEST
    assert request.guidance_scale is None or 0 <= request.guidance_scale <= requests.GUIDANCE_LIMIT


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_number_of_metadata_is_more_or_less_than_a_number(number: float) -> None:
    [problem] = refusal({"prompt": "x", "metadata": {"a": number}})
    assert (problem.code, problem.param) == ("invalid_value", "images[2].metadata.a")


@pytest.mark.parametrize("written", ['{"a": NaN}', '{"a": 1e400}', '{"a": 1, "a": 2}', '{"a": {}}', '{"a": "b: c"}'])
def test_a_line_with_odd_metadata_is_left_to_the_strict_reader(written: str) -> None:
    assert requests.read_plain(f'{{"prompt": "x", "metadata": {written}}}'.encode()) is None


def test_a_line_with_plain_metadata_is_read_in_one_pass() -> None:
    found = requests.read_plain(b'{"prompt": "x", "metadata": {"a": 1, "b": 1.0, "c": true, "d": null, "e": ""}}')
    assert found is not None
    assert requests.metadata_text(found.metadata) == '{"a":1,"b":1.0,"c":true,"d":null,"e":""}'


def test_a_size_gives_width_before_height() -> None:
    assert requests.size_pixels("768x512") == (768, 512)
