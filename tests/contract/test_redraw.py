"""Image to image is diffusers' own: the same input, seed, strength and steps give the same picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.core.files import pictures
from services.core.model.specs import Spec, first_step
from services.core.settings import Settings
from worker.pipeline import Batch, Picture, Pipeline
from worker.pipelines.registry import open_pipeline

pytest.importorskip("diffusers")
SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from worker.model.make import make

    made = tmp_path_factory.mktemp("models") / "tiny-sd"
    make(made, "tiny-sd")
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Pipeline:
    named = {"PRESSWORK_PIPELINE": "torch", "PRESSWORK_MODEL_DIR": str(folder)}
    return open_pipeline(Settings.read(SERVERS | named))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Stock diffusers with the sampler that every model has here."""
    from diffusers import StableDiffusionImg2ImgPipeline

    from worker.bench import stock
    from worker.model import directory

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipeline.scheduler = stock.scheduler(directory.read_sampler_config(folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photograph(size: tuple[int, int] = (96, 64)) -> bytes:
    """A PNG with a gradient and a square."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 30)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


MORE = [(10, 0.75), (4, 0.5), (20, 0.58), (1, 1.0), (16, 0.9)]


@pytest.mark.parametrize(
    ("steps", "strength"),
    [(10, 0.3), (10, 1.0), *(pytest.param(*one, marks=pytest.mark.chaos) for one in MORE)],
)
def test_the_pictures_are_those_of_diffusers(ours: Pipeline, theirs: Any, steps: int, strength: float):
    import torch

    given = pictures.decode(photograph(), (64, 64), 10_000)
    stock = theirs(
        prompt="a red mug", negative_prompt="blurred", image=given, strength=strength, num_inference_steps=steps,
        guidance_scale=5.0, generator=torch.Generator().manual_seed(7), output_type="np",
    )  # fmt: skip
    first = first_step(steps, strength)
    spec = Spec(
        ours.card.revision, "a red mug", "blurred", 7, 64, 64, steps, 5.0, input_sha256="an input", first_step=first
    )
    reported: list[int] = []
    (picture, *_) = ours.render(Batch(spec.shape, (spec,), 1, (np.array(given),)), reported.append)
    assert isinstance(picture, Picture)
    difference = np.abs(picture.pixels.astype(int) - (stock.images[0] * 255).round().astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    assert reported == list(range(1, len(theirs.scheduler.timesteps[first - 1 :]) + 1))
