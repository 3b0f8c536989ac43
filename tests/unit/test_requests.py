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
def test_null_leaves_out_every_field_but_the_prompt_and_names_no_unknown_one(field: str) -> None:
    value = {"prompt": "x", field: None}
    if field == "prompt":
        assert refusal(value)[0].message.startswith("images[2].prompt is null; it must be text")
    else:
        assert requests.ImageRequest.model_validate(value) == requests.ImageRequest(prompt="x")
    assert [problem.code for problem in refusal({"prompt": "x", f"{field}s": None})] == ["unknown_field"]


def test_null_in_a_change_of_a_job_could_mean_two_things_and_is_refused() -> None:
    for field in requests.JobChanges.model_fields:
        with pytest.raises(ValidationError):
            requests.JobChanges.model_validate({field: None})
        assert requests.RetryOptions.model_validate({field: None}) == requests.RetryOptions()


@pytest.mark.parametrize("field", ["n", "seed", "num_inference_steps"])
def test_a_float_is_the_whole_number_that_it_certainly_is(field: str) -> None:
    assert getattr(requests.ImageRequest.model_validate({"prompt": "x", field: 7.0}), field) == 7
    for wrong in (7.5, "7", True, 2.0**53, 1e300):
        (problem,) = refusal({"prompt": "x", field: wrong})
        assert problem.param == f"images[2].{field}"
    assert "2^53 or more is written without a fraction" in refusal({"prompt": "x", field: 2.0**53})[0].message


def test_a_name_may_be_a_number_and_is_its_digits() -> None:
    def named(value: object) -> object:
        return requests.ImageRequest.model_validate({"prompt": "x", "custom_id": value}).custom_id

    assert [named(value) for value in (12, 12.0, 2**64, 10**127)] == ["12", "12", str(2**64), str(10**127)]
    for wrong in (1.5, 2.0**53, True, 10**128):
        assert refusal({"prompt": "x", "custom_id": wrong})[0].param == "images[2].custom_id"


def test_a_line_break_is_one_character_however_it_is_written() -> None:
    for field in ("prompt", "negative_prompt"):
        text = "a\r\n" * (requests.PROMPT_LIMIT // 2)
        request = requests.ImageRequest.model_validate({"prompt": "x", field: text})
        assert getattr(request, field) == text.replace("\r\n", "\n")
    kept = requests.ImageRequest.model_validate({"prompt": "x", "metadata": {"a": "b\r\n"}}).metadata
    assert kept == {"a": "b\r\n"}  # the client's own


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


@pytest.mark.parametrize("field", ['"n": null', '"n": 2.0', '"custom_id": 5', '"negative_prompt": "a\\r\\nb"'])
def test_a_line_in_another_spelling_is_left_to_the_strict_reader(field: str) -> None:
    assert requests.read_plain(f'{{"prompt": "x", {field}}}'.encode()) is None


def test_a_size_gives_width_before_height() -> None:
    assert requests.size_pixels("768x512") == (768, 512)
