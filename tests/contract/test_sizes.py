"""Sizes by setting, also wide and tall ones: pictures of that size, drawn as the plainest code draws them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.core.model.errors import SettingsError
from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.model import checkpoint, noise, sampler
from worker.model.make import make
from worker.model.stages import Decoder
from worker.pipeline import Batch, Picture, canary
from worker.pipelines.registry import model_name, open_pipeline

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for preset in ("tiny", "tiny-sd"):
        make(folder / preset, preset)
    return folder


def settings(folder: Path, sizes: str, pipeline: str = "torch") -> Settings:
    return Settings.read(
        {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused", "PRESSWORK_PIPELINE": pipeline}
        | {"PRESSWORK_MODEL_DIR": str(folder), "PRESSWORK_SIZES": sizes, "PRESSWORK_BATCH_SIZES": "1"}
        | {"PRESSWORK_ARTEFACTS": str(folder.parent / "artefacts")}
    )


@torch.inference_mode()
def reference(folder: Path, prompt: str, width: int, height: int) -> np.ndarray:
    loaded = checkpoint.load(folder)
    padded = [loaded.tokenizer(text, padding="max_length", max_length=77).input_ids for text in ("", prompt)]
    states = loaded.text_encoder(torch.tensor(padded)).last_hidden_state
    latents, x0 = torch.from_numpy(noise.draw(7, (4, height // 8, width // 8))[None]), None
    for step in sampler.plan(loaded.sampler_config, STEPS):
        time = torch.tensor([float(step.timestep)])
        predicted = torch.cat([loaded.unet(latents, time, text[None]) for text in states])
        scale, rescale = torch.full((1, 1, 1, 1), 5.0), loaded.sampler_config.guidance_rescale
        latents, x0 = sampler.advance(step, latents, sampler.guide(predicted, scale, rescale), x0)
    pixels: np.ndarray = Decoder(loaded.vae)(latents)[0][0].numpy()
    return pixels


@pytest.mark.parametrize(
    ("model", "pipeline"),
    [("tiny", "torch"), ("tiny-sd", "torch"), pytest.param("tiny", "onnx", marks=pytest.mark.chaos)],
)
def test_wide_and_tall_pictures_are_what_the_networks_draw(folder: Path, model: str, pipeline: str) -> None:
    opened = open_pipeline(settings(folder / model, "96x64,64x128", pipeline))
    assert opened.card.sizes == ((96, 64), (64, 128)) and opened.card.default_size == (96, 64)
    for width, height in opened.card.sizes:
        spec = Spec(opened.card.revision, "a red mug on a wooden table", "", 7, width, height, STEPS, 5.0)
        (picture,) = opened.render(Batch(spec.shape, (spec,), 1), lambda _: None)
        assert isinstance(picture, Picture)
        assert picture.pixels.shape == (height, width, 3)
        wanted = reference(folder / model, spec.prompt, width, height)
        assert np.abs(picture.pixels.astype(int) - wanted).max() <= 1
    opened.close()


def test_the_model_s_default_size_stays_if_it_is_among_them(folder: Path) -> None:
    card = open_pipeline(settings(folder / "tiny", "96x64,64x64")).card
    assert card.default_size == (64, 64)
    assert canary(card, 1).shape.width == 64
    assert open_pipeline(settings(folder / "tiny", "")).card.sizes == ((64, 64), (128, 128))
    simulated = open_pipeline(settings(folder / "tiny", "64x96", "simulated")).card
    assert (simulated.sizes, simulated.default_size) == (((64, 96),), (64, 96))


@pytest.mark.parametrize(
    ("model", "sizes", "sentence"),
    [
        ("tiny", "64x48", "has 64x48, but the sides of tiny's pictures are multiples of 32"),
        ("tiny-sd", "64x72", "multiples of 16"),
        ("tiny", "64", r"PRESSWORK_SIZES is '64'; it must be sizes"),
        ("tiny", "64x64,", "such as 512x512,768x512"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_named_before_anything_is_loaded(
    folder: Path, model: str, sizes: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        model_name(settings(folder / model, sizes))
