"""What is said of a field that there is not, at every door."""

import pytest
from pydantic import ValidationError

from services.core.exports import options
from services.core.model import requests, suggestions, templates
from services.core.model.errors import InvalidSubmission
from services.core.model.requests import ImageRequest, JobOptions, RetryOptions


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("steps", "num_inference_steps"), ("numInferenceSteps", "num_inference_steps"), ("cfg_scale", "guidance_scale"),
        ("Guidance-Scale", "guidance_scale"), ("width", "size"),
        ("negativ_prompt", "negative_prompt"), ("promt", "prompt"),
        ("num_images", "n"), ("quality", "output_compression"), ("id", "custom_id"), ("SEED", "seed"), ("colour", ""),
        ("", ""), ("x" * 10_000, ""),
    ],
)  # fmt: skip
def test_the_field_that_is_meant_is_suggested(name, wanted):
    assert suggestions.meant(name, ImageRequest.model_fields) == wanted


def test_every_name_that_may_be_meant_is_a_field():
    known = {*ImageRequest.model_fields, *JobOptions.model_fields, "images"}
    assert set(suggestions._OTHER_NAMES) <= known
    assert not set(suggestions._MEANT) & known


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (ImageRequest, "steps", 'There is no field "steps"; did you mean num_inference_steps?'),
        (ImageRequest, "priority", "priority is an option of the job and stands beside images, not in a request."),
        (JobOptions, "seed", "seed is a field of a request; defaults may hold it for all of them."),
        (requests.Defaults, "custom_id", "custom_id has no default; each request has its own."),
        (RetryOptions, "tags", 'There is no field "tags"; did you mean labels?'),
        (ImageRequest, "colour", 'There is no field "colour".'),
    ],
)
def test_a_body_is_told_what_was_meant_or_where_it_belongs(model, name, said):
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"prompt": "a", name: 1} if model is ImageRequest else {name: 1})
    (problem,) = requests.problems(caught.value, {})
    assert (problem.code, problem.param, problem.message) == ("unknown_field", name, said)


def test_a_matrix_and_an_export_tell_it_too():
    _, (problem,) = templates.read({"template": "{a}", "vary": {"a": ["x"]}, "repeats": 2}, {}, 100)
    assert problem.message == 'There is no field "repeats" in a matrix; did you mean repeat?'
    with pytest.raises(InvalidSubmission, match=r'There is no field "split_by"; did you mean split\?'):
        options.parse({"format": "webdataset", "options": {"split_by": {}}})


def test_a_name_that_stands_elsewhere_is_not_suggested_for_itself() -> None:
    said = suggestions.unknown_field("marks", ["marks", "jobs"])
    assert said == 'The field "marks" has no place here; it belongs to an inner object.'
