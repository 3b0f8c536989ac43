"""Long prompts on real networks: what they draw, that short ones draw what they always did, and what was still lost."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from services.core.model.long_prompts import LongPrompts
from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.model import checkpoint, noise, sampler
from worker.model.make import make
from worker.model.stages import Decoder
from worker.pipeline import Batch, Picture, Pipeline
from worker.pipelines.registry import open_pipeline

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
STEPS, SIZES = 2, "2,1"
SHORT = "a red mug on a wooden table"
LONG = " ".join([SHORT] * 15)  # 105 tokens
ENDLESS = LONG * 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model without the option and with it."""
    folder = tmp_path_factory.mktemp("models")
    make(folder / "plain", "tiny-sd")
    shutil.copytree(folder / "plain", folder / "long")
    file = folder / "long" / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"presswork": index["presswork"] | {"long_prompts": True}}))
    return folder / "plain", folder / "long"


@pytest.fixture(scope="module")
def opened(folders: tuple[Path, Path]) -> Callable[[str, Path], Pipeline]:
    found: dict[tuple[str, Path], Pipeline] = {}

    def open_once(kind: str, folder: Path) -> Pipeline:
        if (kind, folder) not in found:
            values = {"PRESSWORK_PIPELINE": kind, "PRESSWORK_MODEL_DIR": str(folder), "PRESSWORK_BATCH_SIZES": SIZES}
            found[kind, folder] = open_pipeline(
                Settings.read(SERVERS | values | {"PRESSWORK_ARTEFACTS": str(folders[0].parent / "artefacts")})
            )
        return found[kind, folder]

    return open_once


def spec(pipeline: Pipeline, prompt: str, negative: str = "", **changes: float) -> Spec:
    """As the core makes it of a request."""
    document = pipeline.card.long_prompts
    chunks = LongPrompts(document).chunks(prompt, negative) if document else 1
    made = Spec(pipeline.card.revision, prompt, negative, 7, 64, 64, STEPS, 5.0, chunks)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def render(pipeline: Pipeline, *specs: Spec) -> list[Picture]:
    found = pipeline.render(Batch(specs[0].shape, specs, len(specs)), lambda _: None)
    assert all(isinstance(picture, Picture) for picture in found)
    return [picture for picture in found if isinstance(picture, Picture)]


@torch.inference_mode()
def reference(folder: Path, prompt: str, negative: str, chunks: int) -> np.ndarray:
    """The picture by the plainest code: the chunks' text states side by side, each half of the guidance by itself."""
    loaded = checkpoint.load(folder)

    def states(text: str) -> torch.Tensor:
        ids = loaded.tokenizer(text).input_ids[1:-1]
        rows = []
        for number in range(chunks):
            part = ids[75 * number : 75 * (number + 1)]
            row = [loaded.tokenizer.bos_token_id, *part, loaded.tokenizer.eos_token_id]
            rows.append(row + [loaded.tokenizer.pad_token_id] * (77 - len(row)))
        return loaded.text_encoder(torch.tensor(rows)).last_hidden_state.reshape(1, 77 * chunks, -1)

    latents, x0 = torch.from_numpy(noise.draw(7, (4, 8, 8))[None]), None
    for step in sampler.plan(loaded.sampler_config, STEPS):
        halves = [
            loaded.unet(latents, torch.tensor([float(step.timestep)]), states(text)) for text in (negative, prompt)
        ]
        guided = sampler.guide(torch.cat(halves), torch.full((1, 1, 1, 1), 5.0), loaded.sampler_config.guidance_rescale)
        latents, x0 = sampler.advance(step, latents, guided, x0)
    pixels: np.ndarray = Decoder(loaded.vae)(latents)[0][0].numpy()
    return pixels


@pytest.mark.parametrize(
    ("kind", "prompt", "negative", "chunks"),
    [
        ("torch", LONG, "", 2),
        ("torch", SHORT, ENDLESS, 4),
        pytest.param("onnx", LONG, SHORT, 2, marks=pytest.mark.chaos),  # exports take long; see test_export
    ],
)
def test_a_long_prompt_is_read_whole(
    kind: str, prompt: str, negative: str, chunks: int, opened: Callable[..., Pipeline], folders: tuple[Path, Path]
) -> None:
    pipeline = opened(kind, folders[1])
    wanted = spec(pipeline, prompt, negative)
    assert wanted.prompt_chunks == chunks
    neighbour = spec(pipeline, SHORT + " at night", max(prompt, negative, key=len))
    assert neighbour.shape == wanted.shape
    picture, _ = render(pipeline, wanted, neighbour)
    _, again = render(pipeline, neighbour, wanted)
    assert np.array_equal(picture.pixels, again.pixels)
    assert picture.truncated is (negative == ENDLESS)
    difference = picture.pixels.astype(int) - reference(folders[1], prompt, negative, chunks)
    assert np.abs(difference).max() <= 1


def test_short_prompts_draw_the_same_bytes_with_and_without_the_option(
    opened: Callable[..., Pipeline], folders: tuple[Path, Path]
) -> None:
    plain, long = (opened("torch", folder) for folder in folders)
    assert plain.card.revision == long.card.revision and plain.card.long_prompts is None
    for negative in ("", "blurred"):
        (one, *_), (other, *_) = (render(p, *[spec(p, SHORT, negative)] * 2) for p in (plain, long))
        assert spec(plain, SHORT, negative) == spec(long, SHORT, negative)
        assert np.array_equal(one.pixels, other.pixels)
    cut = render(plain, spec(plain, LONG), spec(plain, SHORT))
    assert [picture.truncated for picture in cut] == [True, False]
    whole = render(long, spec(long, LONG), spec(long, LONG))[0]
    assert np.abs(whole.pixels.astype(int) - cut[0].pixels).max() > 3


def test_unguided_prompts_may_be_long_too(opened: Callable[..., Pipeline], folders: tuple[Path, Path]) -> None:
    pipeline = opened("torch", folders[1])
    picture = render(pipeline, *[spec(pipeline, LONG, guidance_scale=1.0)] * 2)[0]
    other = render(pipeline, *[spec(pipeline, LONG + " in a river", guidance_scale=1.0)] * 2)[0]
    assert not np.array_equal(picture.pixels, other.pixels)
