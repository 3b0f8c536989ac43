"""A model directory that cannot be used is refused in one sentence, before any library sees it."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.model.errors import SettingsError
from services.core.settings import Settings
from worker.model import directory, weights
from worker.pipeline import ModelUnusable
from worker.pipelines.registry import model_name


def weights_file(**tensors: tuple[str, list[int], int]) -> bytes:
    """A safetensors file of zeros; each tensor is (dtype, shape, bytes)."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


STOCK = weights_file(down_blocks__0__resnets__0__conv1__weight=("F16", [2, 3], 12), conv_in__bias=("F32", [1], 4))
FLEXIBLE = weights_file(down_blocks__0__modules_list__0__conv1__weight=("F16", [2, 3], 12))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory in Stable Diffusion's layout with every name that is looked for, and next to nothing in it."""
    folder = tmp_path / "some-model"
    for name in ("text_encoder", "unet", "vae"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        (folder / name / "model.safetensors").write_bytes(STOCK)
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def deci(model: Path) -> Path:
    """The same in DeciDiffusion's layout: its U-Net beside a placeholder in which nothing is right."""
    folder = model / "flexible_unet"
    folder.mkdir()
    (folder / "config.json").write_text('{"configurations": {"mid_num_resnets": 0}}')
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(FLEXIBLE)
    (model / "unet" / "config.json").write_text("nonsense")
    (model / "unet" / "model.safetensors").write_bytes(b"nonsense")
    (model / "unet" / "diffusion_pytorch_model.bin").touch()
    return model


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
    assert "neither a directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "neither a directory" in refusal(tmp_path / "file")


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
    assert name.split("/", maxsplit=1)[0] in sentence
    assert name.rsplit(".", maxsplit=1)[-1] in sentence


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_flexible_unet_must_be_whole_whatever_lies_beside_it(deci: Path, name: str) -> None:
    (deci / "flexible_unet" / name).unlink()
    sentence = refusal(deci)
    assert "flexible_unet" in sentence and name.rsplit(".", maxsplit=1)[-1] in sentence


def test_the_placeholder_beside_a_flexible_unet_is_never_looked_at(deci: Path) -> None:
    directory.check_model_dir(deci)
    before = directory.revision(deci)
    shutil.rmtree(deci / "unet")
    directory.check_model_dir(deci)
    assert directory.revision(deci) == before


def test_code_and_pickles_are_passed_over_where_safetensors_lie_beside_them(model: Path) -> None:
    before = directory.revision(model)
    for name in ("pipeline.py", "unet/model.py", "unet/diffusion_pytorch_model.bin", "vae/W.BIN", "old.ckpt"):
        (model / name).touch()
    directory.check_model_dir(model)
    assert directory.revision(model) == before


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "x.pt", "x.pth", "old.CKPT", "data.pkl"])
def test_a_part_that_is_only_pickled_is_refused_and_how_to_convert_it_said(model: Path, name: str) -> None:
    (model / "vae" / "model.safetensors").rename(model / "vae" / name)
    sentence = refusal(model)
    assert f"vae/{name}" in sentence and "only safetensors are loaded" in sentence and "save_file" in sentence


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "model", "model.fp16"])
def test_weights_may_have_any_of_the_published_names(model: Path, name: str) -> None:
    (model / "vae" / "model.safetensors").rename(model / "vae" / f"{name}.safetensors")
    directory.check_model_dir(model)


def test_weights_of_another_name_are_named(model: Path) -> None:
    (model / "vae" / "model.safetensors").rename(model / "vae" / "other.safetensors")
    assert "other.safetensors" in refusal(model)


def test_weights_split_over_files_are_refused(model: Path) -> None:
    (model / "vae" / "model.safetensors").rename(model / "vae" / "model-00001-of-00002.safetensors")
    (model / "vae" / "model.safetensors.index.json").write_text("{}")
    assert "split over several files" in refusal(model)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:74dad26d\nsize 1050614888\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (STOCK[:7], "cut short"),
        (STOCK[:40], "cut short: it ends within its header"),
        (STOCK[:-1], "cut short"),
        (STOCK + b"1", "too long"),
        (POINTER, "git-lfs pointer"),
        (b"PK\x03\x04" + bytes(2000), "no safetensors file"),
        (bytes(100), "no safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "no safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "no tensors"),
        (weights_file(a=("F32", [2], 7)), "no safetensors file"),
        (struct.pack("<Q", 8) + b'{"a": 3}', "no safetensors file"),
        (struct.pack("<Q", 8) + b"\xff" * 8, "no safetensors file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("part", ["vae", "flexible_unet"])
def test_weights_that_are_not_whole_are_told_apart(deci: Path, part: str, content: bytes, reason: str) -> None:
    weights.find(deci / part).write_bytes(content)
    sentence = refusal(deci)
    assert reason in sentence and part in sentence


def test_networks_in_each_other_s_place_are_refused(model: Path, deci: Path) -> None:
    file = deci / "flexible_unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(STOCK)
    assert "stock Stable Diffusion U-Net" in refusal(deci)
    shutil.rmtree(deci / "flexible_unet")
    (model / "unet" / "config.json").write_text("{}")
    (model / "unet" / "model.safetensors").write_bytes(FLEXIBLE)
    assert "it belongs in the folder flexible_unet" in refusal(model)


@pytest.mark.parametrize("config", ["{}", '{"configurations": 3}', '{"_class_name": "UNet2DConditionModel"}'])
def test_a_flexible_unet_without_configurations_is_refused(deci: Path, config: str) -> None:
    (deci / "flexible_unet" / "config.json").write_text(config)
    assert '"configurations"' in refusal(deci)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_configs_that_are_no_objects_are_refused(model: Path, name: str, text: str) -> None:
    (model / name).write_text(text, encoding="latin-1")
    assert name in refusal(model)


def test_what_the_index_leaves_out_has_sane_defaults(model: Path) -> None:
    said = directory.read_index(model)
    assert said.name == "some-model"
    assert said.sizes == ((512, 512),)
    assert said.default_size == (512, 512)
    write_index(model, _name_or_path="somebody/a-model", presswork={"sizes": [[64, 96]], "max_steps": 20})
    said = directory.read_index(model)
    assert (said.name, said.default_size, said.max_steps) == ("somebody/a-model", (64, 96), 20)
    assert said.words == ()
    write_index(model, presswork={"words": ["Red", "MUG"], "sampler": {"guidance_rescale": 0.0}})
    said = directory.read_index(model)
    assert (said.words, said.sampler) == (("red", "mug"), {"guidance_rescale": 0.0})


def test_each_kind_of_model_has_its_publisher_s_defaults(model: Path, deci: Path) -> None:
    def told() -> tuple[str, str, int, float, tuple[int, int]]:
        said, solver = directory.read_index(deci), directory.read_sampler_config(deci).solver
        return said.kind, solver, said.default_steps, said.default_guidance_scale, said.default_size

    assert told() == ("DeciDiffusion 2.0", "dpmsolver++", 10, 7.5, (512, 512))
    (deci / "flexible_unet" / "config.json").write_text('{"configurations": {"mid_num_resnets": 4}}')
    assert told() == ("DeciDiffusion 1.0", "ddim", 30, 7.5, (512, 512))
    shutil.rmtree(deci / "flexible_unet")
    assert told() == ("Stable Diffusion", "dpmsolver++", 10, 7.5, (512, 512))
    (deci / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "LCMScheduler"}')
    assert told() == ("Stable Diffusion", "lcm", 4, 1.0, (512, 512))


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
        {"default_guidance_scale": -1},
        {"max_steps": 51},
        {"words": "red mug"},
        {"words": 3},
        {"sampler": [3]},
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
        lambda model: (model / "tokenizer" / "merges.txt").touch(),
        lambda model: (model / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.001}'),
        lambda model: (model / "unet" / "diffusion_pytorch_model.safetensors").touch(),
        lambda model: write_index(model, presswork={"sampler": {"guidance_rescale": 0.5}}),
    ],
)
def test_the_revision_follows_weights_and_configs_that_are_read(model: Path, change: Callable[[Path], object]) -> None:
    before = directory.revision(model)
    assert len(before) == len("revision-") + 12
    (model / "README.md").write_text("not part of the model")
    (model / "unet" / "non_ema.safetensors").touch()
    assert directory.revision(model) == before
    change(model)
    assert directory.revision(model) != before


def test_revisions_are_what_they_were_and_deci_diffusion_1_which_is_sampled_otherwise_has_a_new_one(
    model: Path, deci: Path
) -> None:
    assert directory.revision(directory.locate(directory.SHIPPED)) == "revision-b2680beeae51"
    assert directory.revision(deci) == "revision-e1dbe2ee8325"
    (deci / "flexible_unet" / "config.json").write_text('{"configurations": {"mid_num_resnets": 1}}')
    by_its_publication = directory.revision(deci)
    assert by_its_publication != "revision-2560b0e50f17"
    shutil.rmtree(deci / "flexible_unet")
    (model / "unet" / "config.json").write_text("{}")
    (model / "unet" / "model.safetensors").write_bytes(STOCK)
    (model / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert directory.revision(model) == "revision-852d3f9b120f"


def test_nothing_heavy_is_imported_to_check_a_directory() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'safetensors', 'huggingface_hub'}"
    script = f"import sys; from worker.model import directory, inspect; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_name_that_is_not_in_the_cache_and_cannot_be_fetched_is_one_sentence(
    tmp_path: Path,
) -> None:
    script = """
from worker.model import directory
try:
    directory.check_model_dir("somebody/no-such-model")
except directory.SettingsError as error:
    print(error)
"""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=offline,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "somebody/no-such-model" in done.stdout and "HF_HUB_OFFLINE is set" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_a_model_in_the_cache_is_found_without_a_network(deci: Path, tmp_path: Path) -> None:
    kept = tmp_path / "hub" / "models--somebody--a-model"
    shutil.copytree(deci, kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    script = "from worker.model import directory; print(directory.check_model_dir('somebody/a-model'))"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=offline,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(kept / "snapshots" / ("a" * 40)), done.stderr


def with_checker(model: Path) -> Path:
    for name, file in directory.SAFETY_COMPONENTS.items():
        (model / name).mkdir()
        (model / name / file).write_text("{}")
    (model / "safety_checker" / "model.safetensors").write_bytes(STOCK)
    return model


def test_a_safety_checker_must_be_there_whole_only_when_it_is_asked_for(model: Path) -> None:
    directory.check_model_dir(model)
    with pytest.raises(SettingsError, match="lacks safety_checker/config"):
        directory.check_model_dir(model, directory.SAFETY_COMPONENTS)
    directory.check_model_dir(with_checker(model), directory.SAFETY_COMPONENTS)
    (model / "safety_checker" / "model.safetensors").write_bytes(STOCK[:-1])
    directory.check_model_dir(model)
    with pytest.raises(SettingsError, match=r"safety_checker.* is cut short"):
        directory.check_model_dir(model, directory.SAFETY_COMPONENTS)


def test_a_worker_asks_for_the_safety_checker_when_it_is_set_to(model: Path) -> None:
    named = {"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x", "PRESSWORK_PIPELINE": "onnx"}
    named |= {"PRESSWORK_MODEL_DIR": str(model)}
    checked = Settings.read(named | {"PRESSWORK_SAFETY_CHECKER": "1"})
    assert model_name(Settings.read(named)) == "some-model"
    with pytest.raises(ModelUnusable, match="lacks safety_checker/config"):
        model_name(checked)
    with_checker(model)
    assert model_name(checked) == "some-model"


def test_a_model_s_safety_checker_is_fetched_from_the_hub_when_it_is_asked_for_and_only_then(
    deci: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool, **_: object) -> str:
        if not local_files_only:
            asked.append([pattern.split("/")[0] for pattern in allow_patterns])
            if "safety_checker" in asked[-1]:
                with_checker(deci)
        return str(deci)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert directory.check_model_dir("somebody/a-model") == deci
    assert asked == []  # whole in the cache
    assert directory.check_model_dir("somebody/a-model", directory.SAFETY_COMPONENTS) == deci
    assert directory.check_model_dir("somebody/a-model", directory.SAFETY_COMPONENTS) == deci
    assert len(asked) == 1 and {*directory.SAFETY_COMPONENTS} <= {*asked[0]}
