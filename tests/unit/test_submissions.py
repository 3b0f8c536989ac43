"""Requests on their way to a job: checked one by one, gathered by shape, spooled as COPY takes them."""

import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from services.core.fleet.models import Model, Registry
from services.core.jobs import submissions
from services.core.jobs.submissions import ExistingJob, Submission
from services.core.model.errors import InvalidSubmission, Problem
from services.core.model.specs import DRAWN_SEEDS, Shape
from services.core.policy import policies
from services.core.queue.images import Runs
from services.core.settings import Settings

SETTINGS = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x", "PRESSWORK_MODEL": "usual"})
SIZES = {(512, 512): 50, (64, 64): 50, (64, 128): 20}
MODEL = Model("usual", "usual-1", (512, 512), 10, 7.5, SIZES, datetime.now(UTC))
FAST = dataclasses.replace(MODEL, name="fast", revision="fast-1", default_steps=4, default_guidance_scale=1.0)
REGISTRY = Registry({"usual": MODEL, "fast": FAST})
SHAPE = Shape("usual-1", 512, 512, 10, True)


def gathered(*bodies: object, prefix: str = "", **options: Any) -> Submission:
    submission = Submission(
        SETTINGS, options.pop("registry", REGISTRY), policy=options.pop("policy", policies.NOTHING), **options
    )
    for place, body in enumerate(bodies):
        submission.add(place, {"prompt": "a", **body} if isinstance(body, dict) else body, prefix)
    return submission


def read(*lines: bytes, **options: Any) -> Submission:
    submission = Submission(SETTINGS, REGISTRY, policy=options.pop("policy", policies.NOTHING), **options)
    submissions.read_lines(submission, lines)
    return submission


def codes(submission: Submission) -> list[tuple[str, int | None]]:
    return [(problem.code, problem.line) for problem in submission.problems]


def copied(submission: Submission) -> list[list[str]]:
    """The rows for COPY, without the job's id."""
    submission.close()
    submission._spool.seek(0)
    text = submission._spool.read().decode()
    assert text.endswith("\n")
    rows = [row.split("\t") for row in text.removesuffix("\n").split("\n")]
    assert {row[0] for row in rows} == {str(submission.job_id)}
    return [row[1:] for row in rows]


def test_what_is_not_said_is_the_models_and_a_seed_is_drawn():
    submission = gathered({}, {"seed": 3, "guidance_scale": 2.5, "n": 2, "negative_prompt": "b"}, {"model": "fast"})
    first, second, third = copied(submission)
    nothing = [r"\N"] * 6  # compression, metadata, and what an input picture would have
    assert 0 <= int(first[3]) < DRAWN_SEEDS
    assert [*first[:3], *first[4:]] == ["0", "1", "0", "7.5", "png", r"\N", "a", "", *nothing]
    assert second == ["1", "2", "0", "3", "2.5", "png", r"\N", "a", "b", *nothing]
    assert [*third[:3], *third[4:]] == ["3", "1", "1", "1.0", "png", r"\N", "a", "", *nothing]
    assert (submission.models, submission.drawn_seeds) == ({"usual", "fast"}, 2)
    assert (submission.total, submission.requests, submission.problems) == (4, 3, [])
    assert submission.new_segments == [(SHAPE, 0, 2), (Shape("fast-1", 512, 512, 4, False), 3, 3)]
    assert len({row[3] for row in copied(gathered(*[{}] * 20))}) == 20


def test_every_image_of_a_request_gets_a_seed_that_any_program_can_hold(monkeypatch):
    monkeypatch.setattr(submissions.secrets, "randbelow", lambda limit: limit - 1)
    assert int(copied(gathered({"n": 1000}))[0][3]) + 999 == 2**32 - 1
    assert int(copied(gathered({"seed": 2**63 - 1}))[0][3]) == 2**63 - 1


def test_null_leaves_a_field_to_the_defaults():
    (row,) = copied(gathered({"seed": None, "n": None}, defaults={"seed": 7, "n": 2.0, "negative_prompt": None}))
    assert (row[1], row[3]) == ("2", "7")


def test_names_formats_and_compression_are_kept():
    body = {"custom_id": "x-1", "output_format": "webp", "output_compression": 31}
    assert copied(gathered(body))[0][5:] == ["webp", "x-1", "a", "", "31", *[r"\N"] * 5]


@pytest.mark.parametrize("text", ["tab\there", "line\nend", "back\\slash", "\\N", "plain ü", "a\u2028b"])
def test_what_copy_would_take_for_more_than_text_is_escaped(text):
    row = copied(gathered({"prompt": text, "negative_prompt": text}))[0]
    escaped = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    assert row[7:9] == [escaped, escaped]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({"size": "64x128", "num_inference_steps": 20}, Shape("usual-1", 64, 128, 20, True)),
        ({"num_inference_steps": 50, "guidance_scale": 1.0}, Shape("usual-1", 512, 512, 50, False)),
        ({"guidance_scale": 1.01}, SHAPE),
        ({"model": "fast", "guidance_scale": 3.0}, Shape("fast-1", 512, 512, 4, True)),
    ],
)
def test_a_request_lands_in_the_segment_of_its_shape(asked, shape):
    assert gathered(asked).new_segments == [(shape, 0, 0)]


def test_segments_span_from_their_first_image_to_their_last():
    submission = gathered({"n": 2}, {"size": "64x64"}, {"n": 3, "guidance_scale": 2.0}, {"size": "64x64", "n": 2})
    small = Shape("usual-1", 64, 64, 10, True)
    assert submission.new_segments == [(SHAPE, 0, 5), (small, 2, 7)]
    assert [row[2] for row in copied(submission)] == ["0", "1", "0", "1"]
    assert submission.grown_segments == {}


def test_a_job_that_stands_goes_on_with_its_numbers_and_segments():
    other = Shape("usual-1", 64, 64, 10, True)
    existing = ExistingJob(77, 10, (SHAPE, other, Shape("usual-1", 64, 128, 10, True)))
    submission = gathered({"size": "64x64", "n": 2}, {"num_inference_steps": 9}, existing=existing)
    assert (submission.job_id, submission.total, submission.requests) == (77, 13, 2)
    assert submission.grown_segments == {1: 11}
    assert submission.new_segments == [(Shape("usual-1", 512, 512, 9, True), 12, 12)]
    assert [row[:3] for row in copied(submission)] == [["10", "2", "1"], ["12", "1", "3"]]
    first = gathered({}, existing=ExistingJob(77, 0, (SHAPE,)))
    assert first.grown_segments == {0: 0}


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"model": "other"}, "unknown_model", 'model is "other"; it must be one of: fast, usual.'),
        ({"size": "65x64"}, "unserved_size", 'size is "65x64"; it must be one of: 512x512, 64x64, 64x128.'),
        (
            {"size": "64x128", "num_inference_steps": 21},
            "unserved_steps",
            "num_inference_steps is 21; it must be a whole number from 1 to 20.",
        ),
        ({"output_compression": 3}, "invalid_value", "output_compression is 3; it must be"),
        ({"colour": "blue"}, "unknown_field", "colour"),
        ([], "wrong_type", ""),
    ],
)
def test_what_is_not_served_is_refused_at_its_place_and_nothing_after_it_is_spooled(body, code, said):
    submission = gathered({}, body, {})
    ((problem),) = submission.problems
    assert (problem.code, problem.line) == (code, 1)
    assert said in problem.message
    assert submission.requests == 1
    with pytest.raises(InvalidSubmission) as caught:
        submission.close()
    assert (caught.value.problems, caught.value.more) == ([problem], False)


def test_a_registry_without_models_says_why():
    submission = gathered({}, registry=Registry())
    assert submission.problems[0].message == "There is no model yet: no worker has been up."


def test_a_submission_of_nothing_is_refused():
    with pytest.raises(InvalidSubmission) as caught:
        gathered().close()
    assert [problem.code for problem in caught.value.problems] == ["missing_field"]


def test_compression_is_for_formats_that_have_it():
    assert gathered({"output_compression": 3, "output_format": "jpeg"}).problems == []
    assert gathered({"output_format": "png"}).problems == []
    assert [len(gathered({"output_compression": quality}).problems) for quality in (99, 100)] == [1, 0]
    assert [row[9] for row in copied(gathered({"output_compression": 100}))] == [r"\N"]
    assert [row[9] for row in copied(gathered({"output_compression": 100, "output_format": "jpeg"}))] == ["100"]


def test_a_name_is_used_once_and_reported_by_line_or_by_index():
    named = [{"custom_id": "x"}, {"custom_id": "y"}, {}, {}, {"custom_id": "x"}]
    (problem,) = gathered(*named).problems
    assert (problem.code, problem.line, problem.param) == ("duplicate_custom_id", 4, "custom_id")
    assert 'custom_id is "x"; it was used at line 0 already; each must be used once in a job.' in problem.message
    (problem,) = gathered(*named, prefix="images[4].").problems
    assert "it was used at index 0 already" in problem.message
    assert problem.param == "images[4].custom_id"


def test_a_job_holds_as_many_images_as_it_may_and_a_body_as_many_as_may_come():
    assert gathered({"n": 3}, {"n": 2}, max_images=5).problems == []
    submission = gathered({"n": 3}, {"n": 3}, {"n": 2}, max_images=5)
    assert codes(submission) == [("too_many_images", 1)]
    assert "The job has more than 5 images" in submission.problems[0].message
    existing = ExistingJob(77, 4, (SHAPE,))
    assert gathered({"n": 3}, {"n": 2}, existing=existing, max_images=9, max_here=5).problems == []
    submission = gathered({"n": 3}, {"n": 3}, existing=existing, max_images=99, max_here=5)
    assert codes(submission) == [("too_many_images", 1)]
    assert "The body has more than 5 images" in submission.problems[0].message
    assert codes(gathered({"n": 6}, existing=existing, max_images=9)) == [("too_many_images", 0)]
    small = dataclasses.replace(SETTINGS, max_images_per_job=2)
    submission = Submission(small, REGISTRY, policy=policies.NOTHING)
    submission.add(0, {"prompt": "a", "n": 3})
    assert codes(submission) == [("too_many_images", 0)]


def test_a_job_mixes_sixty_four_shapes_and_no_more():
    model = dataclasses.replace(MODEL, sizes={(512, 512): 100})
    bodies = [{"num_inference_steps": steps} for steps in range(1, 66)]
    submission = gathered(*bodies[:64], *bodies[:64], registry={"usual": model})
    assert (submission.problems, len(submission.new_segments)) == ([], 64)
    submission.add(128, {"prompt": "a", "num_inference_steps": 65})
    assert codes(submission) == [("too_many_shapes", 128)]


def test_a_hundred_problems_are_reported_and_reading_stops():
    submission = read(*[b"{"] * 150)
    assert (len(submission.problems), submission.has_too_many_problems) == (100, True)
    assert not read(*[b"{"] * 99).has_too_many_problems
    for count in (99, 100):
        with pytest.raises(InvalidSubmission) as caught:
            read(*[b"{"] * count).close()
        assert (len(caught.value.problems), caught.value.more) == (count, count == 100)
    many = gathered(*[{"model": "x"}] * 101)
    with pytest.raises(InvalidSubmission) as caught:
        many.close()
    assert len(caught.value.problems) == 100


def test_defaults_hold_for_what_a_request_does_not_say():
    submission = gathered({}, {"n": 1, "size": "512x512"}, defaults={"n": 2, "size": "64x64"})
    assert [(row[1], row[2]) for row in copied(submission)] == [("2", "0"), ("1", "1")]
    assert copied(read(b'{"prompt":"a"}', defaults={"n": 3}))[0][1] == "3"
    assert codes(gathered([], defaults={"n": 2})) == [("wrong_type", 0)]


def test_bad_defaults_are_reported_once_and_not_for_every_request():
    submission = gathered({}, {}, defaults={"n": "many"})
    assert [problem.param for problem in submission.problems] == ["defaults.n"]


def test_lines_are_numbered_from_one_and_blank_ones_are_refused_unless_they_end_the_file():
    good = b'{"prompt":"a"}'
    assert copied(read(good, good))[1][0] == "1"
    assert read(b"\xef\xbb\xbf" + good, good, b"", b"  ").problems == []
    assert codes(read(good, b"", b" ", good, b"\t", good)) == [("blank_line", 2), ("blank_line", 5)]
    assert codes(read(b"", good)) == [("blank_line", 1)]
    assert [line for _, line in codes(read(good, b"{", good, b'{"prompt":1}'))] == [2, 4]
    assert [line for _, line in codes(read(good, b"\xef\xbb\xbf" + good))] == [2]


def test_problems_from_elsewhere_count_too():
    submission = gathered({})
    submission.refuse(Problem("code", "sentence", "field"))
    submission.add(1, {"prompt": "a"})
    assert codes(submission) == [("code", None)]
    assert submission.requests == 1


def digest(*bodies: object, **options: Any) -> bytes:
    return gathered(*bodies, **options).close()


def test_what_a_key_stands_for_is_what_was_asked_and_not_what_was_drawn():
    asked = {"n": 2, "size": "64x64"}
    assert digest(asked) == digest(asked)
    assert digest(asked) == digest({"size": "64x64", "n": 2}, registry={"usual": MODEL})
    others = [
        {"n": 3, "size": "64x64"}, {"n": 2}, {**asked, "seed": 1}, {**asked, "prompt": "b"},
        {**asked, "custom_id": "x"},
        {**asked, "guidance_scale": 7.5}, {**asked, "num_inference_steps": 10}, {**asked, "negative_prompt": "b"},
        {**asked, "output_format": "jpeg"}, {**asked, "model": "usual"},
    ]  # fmt: skip
    assert len({digest(body) for body in (asked, *others)}) == len(others) + 1
    assert digest({}) != digest({}, {}) != digest({}, {}, {})
    closed = gathered(asked)
    assert closed.close() == closed.close() == digest(asked)
    assert len(digest({})) == len(hashlib.sha256().digest())


def test_more_rows_than_are_written_at_a_time_all_arrive_in_order():
    submission = gathered(*({"seed": number} for number in range(2_345)))
    assert [int(row[3]) for row in copied(submission)] == list(range(2_345))
    assert [int(row[0]) for row in copied(submission)] == list(range(2_345))


def test_a_submission_is_closed_with_its_spool():
    with gathered({}) as submission:
        assert submission.requests == 1
    assert submission._spool.closed


def test_images_are_rows_of_the_segment_of_their_run_from_any_index_to_any_other():
    runs, segments = Runs(5), []
    for end, segment in ((7, 0), (8, 0), (9, 3), (9_500, 0), (9_501, 2)):
        runs.extend(end, segment)
        segments += [segment] * (end - 5 - len(segments))
    for first, end in ((5, 9_501), (7, 9), (8, 9), (9_499, 9_501), (9_500, 9_501), (6, 6), (100, 9_400)):
        found = b"".join(runs.rows(12, first, end)).decode()
        assert found == "".join(f"12\t{index}\t{segments[index - 5]}\n" for index in range(first, end))
