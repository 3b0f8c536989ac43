"""Matrices in submissions and estimates: what is said of all combinations without making them."""

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.core.jobs.estimates import WorkTally
from services.core.jobs.submissions import Submission
from services.core.model import templates
from services.core.model.templates import Matrix
from services.core.policy import policies
from tests.unit.test_submissions import REGISTRY, SETTINGS

LONG = "x" * 1_999
TEXTS = st.sampled_from(["", " ", "a", "mug", LONG, "\x07", "\t", 7, 2.5])
VARIED = {
    "a": TEXTS,
    "b": TEXTS,
    "size": st.sampled_from(["64x64", "512x512", "64x128", "8x8"]),
    "num_inference_steps": st.sampled_from([1, 10, 20, 21, 50, 51]),
    "guidance_scale": st.sampled_from([0, 1, 1.5, 7.5]),
    "model": st.sampled_from(["usual", "fast", "nobody's"]),
    "seed": st.integers(0, 3),
    "output_format": st.sampled_from(["png", "jpeg"]),
    "reproducibility_class": st.sampled_from(["usual-1/simulated/uint8/cpu/16", "fast-1/simulated/uint8/cpu/4", "16"]),
}
DEFAULTS = st.sampled_from(
    [{}, {"n": 3}, {"output_compression": 80}, {"size": "64x64", "output_format": "jpeg"}, {"n": 0}]
)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(sorted(VARIED)), min_size=1, max_size=4, unique=True))
    value: dict[str, Any] = {
        "template": draw(st.sampled_from(["", " ", "an ", "\x00"]))
        + "".join(f"{{{name}}}{draw(st.sampled_from(['', ' ']))}" for name in names if len(name) == 1),
        "vary": {name: draw(st.lists(VARIED[name], min_size=1, max_size=4)) for name in names},
    }
    if draw(st.booleans()) and "a" in names:
        value["negative_template"] = "{a}{a}"
    if draw(st.booleans()):
        value["repeat"] = 2
    return value, draw(DEFAULTS)


def tallied(matrix: Matrix, defaults: dict[str, Any], *, one_by_one: bool) -> WorkTally:
    tally = WorkTally(SETTINGS, REGISTRY, defaults=defaults)
    if one_by_one:
        for index, value in enumerate(matrix.requests()):
            tally.add(index, value)
    else:
        tally.add_matrix(matrix)
    return tally


@settings(max_examples=400)
@given(matrices())
@example(({"template": "a", "vary": {"output_format": ["jpeg", "png"]}}, {"output_compression": 80}))
def test_a_matrix_is_counted_and_refused_as_its_combinations_are(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
    value, defaults = drawn
    matrix, _ = templates.read(value, defaults, 10**6)
    if matrix is None:
        return
    quick, slow = tallied(matrix, defaults, one_by_one=False), tallied(matrix, defaults, one_by_one=True)
    assert set(quick.problems) <= set(slow.problems)
    assert bool(quick.problems) == bool(slow.problems)
    if not slow.problems:
        assert list(quick.counts.items()) == list(slow.counts.items())
        assert (quick.requests, quick.total) == (slow.requests, slow.total) == (matrix.combinations, matrix.images)


def counted(monkeypatch: pytest.MonkeyPatch, value: dict[str, Any]) -> tuple[Matrix, list[int]]:
    """The matrix, and a list that gets an entry for each of its requests that is made."""
    made: list[int] = []
    original = Matrix._request

    def noting(self: Matrix, chosen: dict[str, Any]) -> dict[str, Any]:
        made.append(1)
        return original(self, chosen)

    monkeypatch.setattr(Matrix, "_request", noting)
    matrix, problems = templates.read(value, {}, 2_000_000)
    assert matrix is not None, problems
    return matrix, made


LARGE = {
    "template": "a {colour} {thing}",
    "vary": {
        "colour": [f"colour {number}" for number in range(1_000)],
        "thing": [f"thing {number}" for number in range(1_000)],
        "guidance_scale": [1, 7.5],
    },
}


def test_a_matrix_of_two_million_combinations_is_estimated_from_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, made = counted(monkeypatch, LARGE)
    tally = tallied(matrix, {}, one_by_one=False)
    assert (tally.requests, sorted(tally.counts.values())) == (2_000_000, [1_000_000, 1_000_000])
    assert len(made) <= 12


@pytest.mark.parametrize("bad", ["\x07", "y" * 1_990])
def test_a_large_matrix_is_refused_for_its_last_value_before_it_is_expanded(
    monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    vary = LARGE["vary"] | {"thing": [*LARGE["vary"]["thing"][:-1], bad]}
    matrix, made = counted(monkeypatch, LARGE | {"vary": vary})
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(matrix)
    assert {problem.param for problem in submission.problems} == {"prompt"}
    assert len(submission.problems) == len(set(submission.problems)), "each is told once"
    assert len(made) <= 12


def test_more_shapes_than_a_job_may_have_are_refused_before_a_matrix_is_expanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, sizes = list(range(1, 21)), ["64x64", "512x512", "64x128"]
    vary = {"a": [str(number) for number in range(10_000)], "num_inference_steps": steps, "size": sizes,
            "guidance_scale": [0, 5]}  # fmt: skip
    matrix, made = counted(monkeypatch, {"template": "{a}", "vary": vary})
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(matrix)
    assert {problem.code for problem in submission.problems} == {"too_many_shapes"}
    assert len(made) <= 10 + len(list(itertools.product(steps, sizes, [0, 5])))


@pytest.mark.parametrize(("combine", "requests"), [("product", 9), ("zip", 3)])
def test_a_matrix_adds_each_of_its_combinations(combine: str, requests: int) -> None:
    vary = {"colour": ["red", "blue", "green"], "thing": ["mug", "jug", "vase"]}
    matrix, _ = templates.read({"template": "{colour} {thing}", "combine": combine, "vary": vary}, {}, 100)
    assert matrix is not None
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(matrix)
        assert (submission.requests, submission.total, submission.problems) == (requests, requests, [])


def test_of_a_list_of_pairs_no_more_are_looked_at_than_a_hundred_that_are_wrong() -> None:
    vary = {"colour": ["\x07"] * 150, "thing": ["mug"] * 150}
    matrix, _ = templates.read({"template": "{colour} {thing}", "combine": "zip", "vary": vary}, {}, 1_000)
    assert matrix is not None
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(matrix)
    assert len(submission.problems) == 100


def test_the_class_may_vary_and_each_one_is_a_shape_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [f"usual-1/simulated/uint8/simulated/{size}" for size in (16, 4)]
    vary = {"a": ["x", "y", "z"], "reproducibility_class": classes}
    matrix, _ = counted(monkeypatch, {"template": "{a}", "vary": vary | {"model": ["usual"]}})
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(matrix)
        assert not submission.problems
        assert [shape.reproducibility_class for shape, _, _ in submission.new_segments] == classes
    elsewhere = {"a": ["x"], "reproducibility_class": ["elsewhere-1/simulated/uint8/simulated/16"]}
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        submission.add_matrix(counted(monkeypatch, {"template": "{a}", "vary": elsewhere | {"model": ["usual"]}})[0])
    assert {problem.code for problem in submission.problems} == {"unserved_class"}
