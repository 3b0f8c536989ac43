"""A model directory that cannot be used is refused in one sentence, before any library sees it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.errors import SettingsError
from worker.model import directory, tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with every name that is looked for, and nothing in the weights."""
    folder = tmp_path / "some-model"
    for name in directory.NETWORKS:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        (folder / name / "model.safetensors").write_bytes(b"")
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def write_index(model: Path, **fields: object) -> None:
    (model / "model_index.json").write_text(json.dumps(fields))


def refusal(path: Path | str) -> str:
    with pytest.raises(SettingsError) as caught:
        directory.check_model_dir(path)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_whole_directory_passes(model: Path) -> None:
    directory.check_model_dir(model)


def test_a_tokenizer_of_two_files_passes_too(model: Path) -> None:
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / "vocab.json").write_text("{}")
    (model / "tokenizer" / "merges.txt").write_text("")
    directory.check_model_dir(model)


def test_no_directory_at_all_is_refused(tmp_path: Path) -> None:
    assert "PRESSWORK_MODEL_DIR is not set" in refusal("")
    assert "not a directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "not a directory" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/model.safetensors",
        "vae/config.json",
        "vae/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_each_missing_part_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    sentence = refusal(model)
    assert name.split("/")[0] in sentence
    assert name.rsplit(".", maxsplit=1)[-1] in sentence


@pytest.mark.parametrize(
    "name",
    [
        "unet/weights.bin",
        "model.pt",
        "x.pth",
        "old.ckpt",
        "deep/er/data.pkl",
        "vae/W.BIN",
        "pipeline.py",
        "unet/model.py",
    ],
)
def test_what_could_run_code_is_refused_wherever_it_lies(model: Path, name: str) -> None:
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).touch()
    assert name in refusal(model)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_configs_that_are_no_objects_are_refused(model: Path, name: str, text: str) -> None:
    (model / name).write_text(text, encoding="latin-1")
    assert name in refusal(model)


def test_a_flexible_unet_is_refused_rather_than_drawn_with_its_placeholder(model: Path) -> None:
    (model / "flexible_unet").mkdir()
    assert "flexible_unet" in refusal(model)


def test_what_the_index_leaves_out_has_sane_defaults(model: Path) -> None:
    said = directory.read_index(model)
    assert said.name == "some-model"
    assert said.sizes == ((512, 512),)
    assert said.default_size == (512, 512)
    write_index(model, _name_or_path="somebody/a-model", presswork={"sizes": [[64, 96]], "max_steps": 20})
    said = directory.read_index(model)
    assert (said.name, said.default_size, said.max_steps) == ("somebody/a-model", (64, 96), 20)


@pytest.mark.parametrize(
    "block",
    [
        [],
        {"sizes": []},
        {"sizes": [[64]]},
        {"sizes": [[60, 64]]},
        {"sizes": [[0, 64]]},
        {"sizes": 512},
        {"sizes": [[64, 64]], "default_size": [128, 128]},
        {"default_steps": 80},
        {"default_steps": 0},
        {"default_guidance_scale": "much"},
    ],
    ids=json.dumps,
)
def test_an_index_that_makes_no_sense_is_refused(model: Path, block: object) -> None:
    write_index(model, presswork=block)
    assert "presswork" in refusal(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "unet" / "model.safetensors").write_bytes(b"1"),
        lambda model: (model / "vae" / "config.json").write_text("[]"),
        lambda model: (model / "unet" / "model.safetensors").rename(model / "unet" / "other.safetensors"),
        lambda model: (model / "unet" / "more.safetensors").touch(),
    ],
)
def test_the_revision_follows_weights_and_configs(model: Path, change: Callable[[Path], object]) -> None:
    before = directory.revision(model)
    assert len(before) == len("revision-") + 12
    (model / "README.md").write_text("not part of the model")
    assert directory.revision(model) == before
    change(model)
    assert directory.revision(model) != before


def test_the_tiny_model_s_maker_refuses_a_taken_directory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.main([str(model)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in model.parent.iterdir()) == ["some-model"]


def test_the_tiny_model_s_vocabulary_spells_any_byte() -> None:
    vocabulary, merges = tiny._vocabulary()
    assert len(set(vocabulary.values())) == len(vocabulary)
    assert {tiny._printable(byte) for byte in range(256)} <= vocabulary.keys()
    assert all("".join(pair) in vocabulary for pair in merges)
