"""Reproducibility classes: their syntax, and who may serve one."""

import re
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.fleet import serving, workers
from services.core.fleet.abilities import Abilities
from services.core.fleet.models import Model, Registry
from services.core.fleet.served import Served, resolve
from services.core.items import columns
from services.core.model import classes, requests
from services.core.model.classes import Parts
from services.core.model.errors import Problem
from services.core.model.specs import Shape, Spec

GPU = "rev-1/torch/fp16/NVIDIA H200/16"
SHAPE = Shape("rev-1", 64, 64, 10, True)
WORD = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=8)


@given(st.builds(Parts, WORD, WORD, WORD, WORD, st.integers(1, 99_999)))
def test_a_class_is_read_as_it_is_written_and_the_schema_says_the_same(parts):
    assert classes.parse(classes.name(parts)) == parts
    assert re.fullmatch(classes.PATTERN, classes.name(parts))


@pytest.mark.parametrize(
    "text", ["", "a/b/c/d", "a/b/c/d/0", "a/b/c/d/x", "a/b/c//16", "/b/c/d/16", "a/b/c/d\n/16", "16"]
)
def test_what_is_no_class_is_refused_with_what_one_is(text):
    assert classes.parse(text) is None
    with pytest.raises(ValueError, match="reproducibility_class") as refused:
        requests.ImageRequest.model_validate({"prompt": "a mug", "reproducibility_class": text})
    [problem] = requests.problems(refused.value, {})  # type: ignore[arg-type]
    assert problem.code == "invalid_value" and "REVISION/BACKEND/PRECISION/DEVICE KIND/BATCH SIZE" in problem.message


def test_a_device_kind_may_hold_a_slash():
    found = classes.parse("r/b/p/a GPU/with/16")
    assert found is not None and (found.device_kind, found.batch_size) == ("a GPU/with", 16)


def asked(name: str) -> Served | Problem:
    model = Model("m", "rev-1", (64, 64), 10, 7.5, {(64, 64): 50}, datetime.now(UTC))
    request = requests.Defaults.model_validate({"reproducibility_class": name})
    return resolve(Registry(m=model), request, "m")


def test_a_class_of_another_revision_or_of_single_images_cannot_be_asked_for():
    found = asked(GPU)
    assert isinstance(found, Served) and found.shape == replace(SHAPE, reproducibility_class=GPU)
    other = asked(GPU.replace("rev-1", "rev-0"))
    assert isinstance(other, Problem) and other.code == "unserved_class" and '"rev-1/"' in other.message
    second = asked(GPU.replace("fp16", classes.second_try("fp16", "fp32")))
    assert isinstance(second, Problem) and second.code == "unserved_class" and "decoder" in second.message


def test_a_class_is_no_part_of_a_spec_its_key_or_its_measured_time():
    one = replace(SHAPE, reproducibility_class=GPU)
    assert one.rendered == SHAPE and one.timed == SHAPE.timed and one != SHAPE
    assert not any("class" in name for name in Spec("r", "p", "", 0, 64, 64, 10, 7.5).canonical())


def test_a_worker_serves_the_classes_of_its_batches_and_not_those_that_do_not_fit():
    able = Abilities(classes={16: GPU, 4: GPU.replace("/16", "/4")})
    wide, narrow = (replace(SHAPE, reproducibility_class=name) for name in able.classes.values())
    assert able.serves(wide) and able.serves(narrow) and able.serves(SHAPE)
    assert (able.batch_of(SHAPE), able.batch_of(wide), able.batch_of(narrow)) == (16, 16, 4)
    short = replace(able, too_large={SHAPE: 16})
    assert not short.serves(wide) and short.serves(narrow) and short.batch_of(SHAPE) == 4
    assert short.serves(replace(wide, steps=11))  # another shape may fit
    assert Abilities.read(short.as_report()) == replace(short, classes=dict(short.classes))
    assert not Abilities.read({}).serves(wide) and Abilities.read({}).serves(SHAPE)  # of the release before


def test_a_report_of_a_later_release_is_read_without_the_shapes_that_it_tells_apart_by_more():
    shape = asdict(SHAPE)
    said = Abilities(classes={16: GPU}).as_report()
    said["too_large"] = [[shape, 16], [shape | {"frames": 8}, 4], [{"width": 64}, 4]]
    read = Abilities.read(said)
    assert read.too_large == {SHAPE: 16} and read.classes == {16: GPU}
    del shape["prompt_chunks"]
    assert Abilities.read(said | {"too_large": [[shape, 16]]}).too_large == {SHAPE: 16}  # of an earlier one


def test_a_report_of_another_release_is_shown_without_the_scorers_of_which_it_says_less():
    scorer = {"failed": 1, "late": 0, "why": "no", "off": False}
    said = workers._said({"scorers": {"ours": scorer | {"more": 1}, "theirs": {"failed": 1}}}, "cpu")
    assert said["scorers"] == (workers.ScorerTrouble("ours", 1, 0, "no", False),)


def test_what_nobody_serves_is_told_in_one_sentence():
    able = Abilities(sizes=("64x64",), classes={16: GPU})
    live = serving.Serving((("rev-1", "cuda:0 H200", able),))
    other = replace(SHAPE, reproducibility_class=GPU.replace("H200", "A100"))
    assert live.of(replace(SHAPE, reproducibility_class=GPU)) == ["cuda:0 H200"]
    assert live.lacks(other) and "A100" in serving.nobody(other)
    assert live.lacks(replace(SHAPE, width=128)) and "128x64" in serving.nobody(replace(SHAPE, width=128))
    assert not live.lacks(replace(SHAPE, model_revision="rev-2"))  # which the overview says of the model


def test_a_table_asks_for_a_class_only_if_its_column_is_named():
    """Exports have such a column, which says what became of an image."""
    head = ["prompt", "reproducibility_class"]
    assert columns.taken("f", head, {}) == [("prompt", 0)]
    named = {"reproducibility_class": "reproducibility_class"}
    assert set(columns.taken("f", head, named)) == {("prompt", 0), ("reproducibility_class", 1)}
    assert not columns.known({})("reproducibility_class") and columns.known(named)("reproducibility_class")
