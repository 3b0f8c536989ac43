"""Renders prompts with the engine as a CPU worker does, for presswork-mini's figures and tests."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import PressworkError
from services.core.model.specs import Spec
from worker.pipeline import Batch, InvalidOutput, Picture
from worker.pipelines.onnx import open_onnx

BATCH = 8


class Sampler(AbstractContextManager["Sampler"]):
    """A model's directory on the onnx pipeline. `cpu_seconds` is the CPU time of rendering so far."""

    def __init__(self, folder: Path) -> None:
        self._artefacts = tempfile.TemporaryDirectory(prefix="presswork-mini-")
        self._pipeline = open_onnx(
            folder, runtime="openvino", precision="fp32", device="cpu", batch_sizes=(BATCH,),
            cache=Path(self._artefacts.name),
        )  # fmt: skip
        self.card = self._pipeline.card
        self.cpu_seconds = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._pipeline.close()
        self._artefacts.cleanup()

    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int = 10, guidance_scale: float | None = None
    ) -> list[Picture]:
        """One picture per prompt, at the model's default size. Raises PressworkError for invalid output."""
        scale = self.card.default_guidance_scale if guidance_scale is None else guidance_scale
        width, height = self.card.default_size
        specs = [
            Spec(self.card.revision, prompt, "", seed, width, height, steps, scale)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        made: list[Picture] = []
        for start in range(0, len(specs), BATCH):
            part = specs[start : start + BATCH]
            batch = Batch(part[0].shape, tuple(part + part[-1:] * (BATCH - len(part))), len(part))
            self._pipeline.prepare(batch.shape, BATCH)
            began = time.process_time()
            for picture in self._pipeline.render(batch, _ignore_step)[: len(part)]:
                if isinstance(picture, InvalidOutput):
                    raise PressworkError(picture.message)
                made.append(picture)
            self.cpu_seconds += time.process_time() - began
        return made


def _ignore_step(_step: int) -> None:
    """Steps are not reported."""


def pixels(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """(B, height, width, 3)."""
    return np.stack([picture.pixels for picture in pictures])
