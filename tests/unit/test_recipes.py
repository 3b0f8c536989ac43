"""Recipes of prompts: what they expand to, always the same, and what is refused."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.app import app
from services.core.items import recipe_values, recipes
from services.core.items.errors import Unreadable, WrongOption
from services.core.items.recipes import Expansion, Recipe, TooFew

NO_FILE: Any = None


def made(vary: dict[str, Any], template: str = "a {colour} {thing}", **more: Any) -> tuple[list[Any], Expansion]:
    seen = Expansion()
    recipe = recipes.read({"template": template, "vary": vary} | more, NO_FILE, "recipe")
    return list(recipe.requests(recipes.names, seen)), seen


def test_all_combinations_are_made_in_order_with_their_values_as_metadata() -> None:
    found, seen = made({"colour": ["red", "teal"], "thing": ["mug", "hat"], "size": ["64x64"]})
    assert [request["prompt"] for request in found] == ["a red mug", "a red hat", "a teal mug", "a teal hat"]
    assert found[1] == {
        "size": "64x64", "prompt": "a red hat", "metadata": {"colour": "red", "thing": "hat", "size": "64x64"},
    }  # fmt: skip
    assert seen.values == {"colour": {"red": 2, "teal": 2}, "thing": {"mug": 2, "hat": 2}, "size": {"64x64": 4}}


def test_a_text_that_was_made_already_is_left_out() -> None:
    found, seen = made({"colour": ["red", "red "], "thing": ["mug", " mug"]}, "a {colour}{thing}")
    assert [request["prompt"] for request in found] == ["a redmug", "a red mug", "a red  mug"]
    assert seen.repeated == 1


def test_a_sample_is_the_same_for_a_seed_and_another_for_another() -> None:
    vary = {"colour": [str(n) for n in range(40)], "thing": [str(n) for n in range(50)]}
    first, again, other = (made(vary, sample=100, seed=seed)[0] for seed in (7, 7, 8))
    assert first == again != other
    assert len({request["prompt"] for request in first}) == 100
    # These very prompts: what was drawn once must be drawn ever after.
    assert [request["prompt"] for request in first[:3]] == ["a 19 32", "a 28 39", "a 30 24"]
    weighted = vary | {"thing": {"values": ["mug", "hat"], "weights": [1, 2]}}
    drawn = [request["prompt"] for request in made(weighted, sample=3, seed=7)[0]]
    assert drawn == ["a 12 mug", "a 26 mug", "a 21 hat"]


def test_a_sample_as_large_as_all_is_all_of_them() -> None:
    vary = {"colour": ["red", "teal", "blue"], "thing": ["mug", "hat"]}
    found, _ = made(vary, sample=6)
    assert {request["prompt"] for request in found} == {request["prompt"] for request in made(vary)[0]}
    with pytest.raises(TooFew, match="The sample is 7, and only 6 different prompts were found among 6 combinations"):
        made(vary, sample=7)


def test_values_are_drawn_by_their_weights() -> None:
    thing = {"values": ["mug", "hat", "never"], "weights": [1, 3, 0]}
    found, seen = made({"colour": [str(n) for n in range(4000)], "thing": thing}, sample=2000)
    assert seen.values["thing"]["never"] == 0
    assert 0.70 < seen.values["thing"]["hat"] / len(found) < 0.80
    with pytest.raises(TooFew, match="only 2 different prompts"):
        made({"colour": ["red"], "thing": thing}, sample=3)


@given(st.integers(1, 600), st.integers(0, 2**64))
def test_a_permutation_takes_each_number_to_another(count: int, seed: int) -> None:
    assert sorted(recipes.permuted(index, count, seed) for index in range(count)) == list(range(count))


def test_a_permutation_of_many_needs_no_list_and_is_even() -> None:
    found = [recipes.permuted(index, 10**18, 1) for index in range(1000)]
    assert len(set(found)) == 1000
    tenths = Counter(place * 10 // 10**18 for place in found)
    assert all(60 < tenths[tenth] < 150 for tenth in range(10))


def test_a_file_has_a_value_a_line_and_may_have_weights() -> None:
    assert recipe_values.of_lines("a", "\n fox \n# no\nbear\nfox\n") == recipe_values.Values(("fox", "bear"))
    weighted = recipe_values.of_lines("a", "fox\n2.5::owl: a bird\n.5::\nfox\n")
    assert weighted == recipe_values.Values(("fox", "owl: a bird", ""), (2.0, 2.5, 0.5))
    with pytest.raises(Unreadable, match="The file of a holds no values"):
        recipe_values.of_lines("a", "# nothing\n")
    with pytest.raises(WrongOption, match="The weights of a are all 0"):
        recipe_values.of_lines("a", "0::fox\n")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"template": 3}, '"template" must be text'),
        ({"vary": {}}, '"vary" must hold one or more names'),
        ({"vary": {"1a": ["b"]}}, "cannot be a name in a template"),
        ({"vary": {"colour": []}}, "colour must be a list of texts or numbers"),
        ({"vary": {"colour": [True]}}, "colour must be a list of texts or numbers"),
        ({"vary": {"colour": {"values": ["a"], "weights": [0]}}}, "colour must have a weight for each value"),
        ({"vary": {"colour": {"values": ["a"], "weights": [1, 2]}}}, "colour must have a weight for each value"),
        ({"vary": {"colour": {"values": ["a"], "weights": [float("nan")]}}}, "colour must have a weight"),
        ({"vary": {"colour": ["a"], "other": ["b"]}}, "other is neither used in the template nor a field"),
        ({"vary": {"other": ["b"]}}, "The template names colour, and it has no values"),
        ({"vary": {"colour": [" "]}, "template": "{colour}"}, "The prompt of colour=  is empty"),
        ({"template": "a {colour"}, r"a \{ at character 3 that belongs to no name"),
        ({"sample": 0}, '"sample" must be a whole number above 0'),
        ({"seed": -1}, '"seed" one from 0'),
        ({"liquid": "yes"}, '"liquid" must be true or false'),
        ({"wight": 1}, "an unknown field 'wight'"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    given = {"template": "a {colour} mug", "vary": {"colour": ["red"]}} | changes
    with pytest.raises(WrongOption, match=sentence):
        list(recipes.read(given, NO_FILE, "recipe").requests(recipes.names, Expansion()))


def test_a_recipe_reads_back_as_what_it_was() -> None:
    lists = {"a": recipe_values.Values(("x", 2, 0.5)), "b": recipe_values.Values(("y", "z"), (1.0, 0.25))}
    for recipe in (
        Recipe("{a} {b}", lists),
        Recipe("{{ a }} {{ b }}", lists, "not {{ a }}", liquid=True, sample=3, seed=9),
    ):
        again = recipes.read(json.loads(json.dumps(recipe.as_json())), NO_FILE, "recipe")
        assert again.as_json() == recipe.as_json()
        assert again.digest == recipe.digest
    assert len({Recipe("{a} {b}", lists, sample=1, seed=seed).digest for seed in (1, 2)}) == 2


# --- the command


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["prompts", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_lines_and_a_recipe_that_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("things.txt").write_text("\ufeffmug\n3::hat\n", encoding="utf-8")
    words = ("a {c} {t}", "--vary", 'c=red,"dark, blue"', "--vary", "t=@things.txt", "--sample", "3", "--seed", "5")
    shown = run(*words, "-o", "p.jsonl").stderr
    assert "3 prompts of 4 combinations" in shown
    assert "presswork submit p.jsonl --label recipe=" in shown
    lines = Path("p.jsonl").read_text()
    assert run(*words).stdout == run("p.recipe.json").stdout == lines
    assert run("p.recipe.json", "--seed", "6").stdout != lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "p.recipe.json", "things.txt"]
    kept = {json.loads(line)["metadata"]["c"] for line in lines.splitlines()}
    assert kept <= {"red", "dark, blue"}


def test_a_recipe_names_its_files_from_its_own_folder_and_may_be_liquid(tmp_path: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\nblue\n")
    (tmp_path / "recipe.toml").write_text(
        "template = \"a {{ c }}{% if c == 'red' %} hot{% endif %} mug\"\nliquid = true\nvary.c = '@colours.txt'\n"
    )
    lines = run(str(tmp_path / "recipe.toml")).stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["a red hot mug", "a blue mug"]


def test_nothing_is_written_of_what_cannot_be_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("as it was")
    assert run("a {c}", "--vary", "c=red,blue", "--sample", "3", code=2).stdout == ""
    run("a {c}", "--vary", "c=red,blue", "--sample", "3", "-o", "old.jsonl", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]
    assert Path("old.jsonl").read_text() == "as it was"
    assert "Nothing varies" in run("a mug", code=2).stderr
    assert "no such file" in run("a {c}", "--vary", "c=@none.txt", code=1).stderr.lower()
    assert "Liquid" in run("a {{ c", "--liquid", "--vary", "c=red", code=5).stderr


def test_an_expansion_reads_no_more_than_is_asked_for() -> None:
    vary = {name: recipe_values.Values(tuple(range(1000))) for name in "abcdef"}
    made = Recipe("{a}{b}{c}{d}{e}{f}", vary, sample=10**12).requests(recipes.names, Expansion())
    assert len(list(itertools.islice(made, 100))) == 100
