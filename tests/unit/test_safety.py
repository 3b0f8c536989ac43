"""The safety checker says what its publisher's would, and never touches a picture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from services.core.model.errors import SettingsError
from worker.model import checkpoint
from worker.model.make import make
from worker.model.safety import Preparation, load_safety_checker
from worker.pipeline import Picture, canary
from worker.pipelines.torch_compiled import open_torch

# As old libraries wrote it: fields that newer ones no longer know, and the decisive ones in a second block.
CONFIG: dict[str, Any] = {
    "_name_or_path": "somebody/safety",
    "architectures": ["StableDiffusionSafetyChecker"],
    "auto_map": {"AutoModel": "code.Evil"},
    "initializer_factor": 1.0,
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 32, "pruned_heads": {}, "torchscript": False, "attn_implementation": "somebody/kernel",
    },
    "vision_config_dict": {"patch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def publisher() -> Any:
    """The publisher's own class, with random weights and thresholds that some of our pictures are over."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = CONFIG["vision_config"] | CONFIG["vision_config_dict"]
    vision = {name: vision[name] for name in vision if name not in ("attn_implementation", "pruned_heads")}
    torch.manual_seed(1)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=24)).eval()
    with torch.no_grad():
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(checker, name).normal_()
        prepared = torch.from_numpy(Preparation(shortest=32, crop=32).prepare(pictures(60)))
        seen = functional.normalize(checker.visual_projection(checker.vision_model(prepared).pooler_output))
        for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.8)):
            cosines = seen @ functional.normalize(getattr(checker, name)).T
            getattr(checker, f"{name}_weights").copy_(cosines.quantile(share, dim=0))
    return checker


@pytest.fixture
def folder(publisher: Any, tmp_path: Path) -> Path:
    """With the names that older libraries gave the tensors, and the position_ids that they stored."""
    for name in ("safety_checker", "feature_extractor"):
        (tmp_path / name).mkdir()
    (tmp_path / "safety_checker" / "config.json").write_text(json.dumps(CONFIG))
    tensors = {
        f"vision_model.{name}"
        if name.startswith("vision_model.") and "vision_model.vision_model" not in name
        else name: t
        for name, t in publisher.state_dict().items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, tmp_path / "safety_checker" / "model.safetensors")
    prepared = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(prepared))
    return tmp_path


def pictures(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours, unlike one another."""
    chance = np.random.default_rng(4)
    corners = chance.integers(0, 256, (count, 2, 2, 3))
    x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    top = corners[:, None, None, 0, 0] * (1 - x) + corners[:, None, None, 0, 1] * x
    bottom = corners[:, None, None, 1, 0] * (1 - x) + corners[:, None, None, 1, 1] * x
    return (top * (1 - y) + bottom * y).astype(np.uint8)


def test_the_verdict_is_the_publisher_s_and_the_pictures_stay(publisher: Any, folder: Path) -> None:
    pixels = pictures(60)
    before = pixels.copy()
    flags = load_safety_checker(folder).flags(pixels)
    prepared = Preparation(shortest=32, crop=32).prepare(pixels)
    _, verdict = publisher(torch.from_numpy(prepared), [np.zeros(1) for _ in pixels])
    assert flags.dtype == np.bool_ and flags.shape == (60,)
    assert flags.tolist() == verdict
    assert 0 < sum(verdict) < 60
    assert (pixels == before).all()


def test_pictures_are_prepared_as_the_published_processor_does() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = pictures(2, height=300, width=260)
    theirs = CLIPImageProcessorPil()(list(pixels), return_tensors="np")["pixel_values"]
    assert np.abs(Preparation().prepare(pixels) - theirs).max() < 1e-5


def test_sizes_may_be_numbers_as_in_older_files() -> None:
    assert Preparation.read({"size": 224, "crop_size": 200, "feature_extractor_type": "x"}).crop == 200
    for wrong in ({"size": {}}, {"crop_size": "x"}, {"crop_size": 300}, {"image_std": [0, 1, 1]}, {"image_mean": 3}):
        with pytest.raises(SettingsError, match="preprocessor_config"):
            Preparation.read(wrong)


def test_a_checker_that_is_not_whole_is_refused_in_one_sentence(folder: Path) -> None:
    file = folder / "safety_checker" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("concept_embeds")
    save_file(tensors, file)
    with pytest.raises(SettingsError, match=r"safety_checker lacks 1 of its 44 tensors, concept_embeds for one\."):
        load_safety_checker(folder)
    (folder / "safety_checker" / "config.json").write_text('{"vision_config": {"hidden_size": "x"}}')
    with pytest.raises(SettingsError, match="makes no network"):
        load_safety_checker(folder)
    (folder / "safety_checker" / "config.json").unlink()
    with pytest.raises(SettingsError, match="lacks safety_checker"):
        load_safety_checker(folder)


def test_a_pipeline_s_pictures_get_their_verdict_when_they_are_reviewed(folder: Path, tmp_path: Path) -> None:
    checker = load_safety_checker(folder)
    make(tmp_path / "tiny")
    pipeline = open_torch(
        checkpoint.load(tmp_path / "tiny"), "cpu", "fp32", (1,), compiles=False, cache=tmp_path, checker=checker
    )
    drawn = pipeline.render(canary(pipeline.card, 1), lambda step: None)[0]
    assert isinstance(drawn, Picture) and drawn.flagged is None
    for pixels in pictures(12):
        asked = replace(drawn, pixels=pixels)
        found = pipeline.review(asked)
        assert found.flagged is bool(checker.flags(pixels[None])[0]) and found.pixels is pixels
