"""The frozen values that packages exchange: Spec, Shape, Image, Claim, StoredImage and the model's card.

Plain Python: none of them holds a connection, a tensor or a file.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from services.core.model.licenses import License

OutputFormat = Literal["png", "jpeg", "webp"]
SEED_LIMIT = 2**63
DEFAULT_STRENGTH = 0.8
DRAWN_SEEDS = 2**32  # the seeds that Presswork draws are below this, so that every program can hold and use them
Digest = bytes


def image_seed(seed: int, nth: int) -> int:
    """The seed of the `nth` image, from 0, of a request whose first image has `seed`. `columns.image_seed_sql` is the
    same in SQL."""
    return (seed + nth) % SEED_LIMIT


def first_step(steps: int, strength: float) -> int:
    """From which of the steps, counted from 1, an input picture is redrawn: as diffusers counts, so that 0.3 of ten
    steps are the last three. More than `steps`: no step is left."""
    return steps - min(int(steps * strength), steps) + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What images must have in common to share a batch. Sizes in pixels; `guided` is guidance_scale > 1;
    `prompt_chunks` is more than 1 only for prompts that are too long for the text encoder, if the model reads them.

    `first_step` is 0 for pictures that begin as noise; else an input picture is redrawn from that step on, 1..steps.
    `reproducibility_class` is the one that was asked for, "" if any will do; it is no part of a spec.
    """

    model_revision: str
    width: int
    height: int
    steps: int
    guided: bool
    prompt_chunks: int = 1
    first_step: int = 0
    reproducibility_class: str = ""

    @property
    def steps_done(self) -> int:
        """How many of the steps are rendered."""
        return self.steps - max(self.first_step - 1, 0)

    @property
    def rendered(self) -> "Shape":
        """The shape of its batches, which know nothing of the class that was asked for."""
        return replace(self, reproducibility_class="") if self.reproducibility_class else self

    @property
    def timed(self) -> "Shape":
        """The shape under which its time is measured: how long the prompt is makes little of it, and nor does encoding
        an input, which leaves fewer steps."""
        return Shape(self.model_revision, self.width, self.height, self.steps_done, self.guided)

    @property
    def work(self) -> int:
        """A number proportional to the work of an image."""
        return self.width * self.height * self.steps_done * (2 if self.guided else 1)

    def nearest(self, measured: Iterable["Shape"]) -> "Shape":
        """That of the measured shapes whose time says most of this one's: itself, else the one of most equal work."""
        return min(measured, key=lambda other: (other != self, abs(math.log(self.work / other.work))))


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that decides an image's pixels. `seed` in 0..2^63-1, `guidance_scale` in 0..50, sizes in pixels.
    `prompt_chunks`: in how many chunks the longer of prompt and negative prompt is read.

    `input_sha256` is that of the input picture's file, in hex; "" without one. `first_step` as in Shape.

    A field that is added later needs a default that leaves the pixels as they were without it: see `canonical`.
    """

    model_revision: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    prompt_chunks: int = 1
    input_sha256: str = ""
    first_step: int = 0

    @property
    def shape(self) -> Shape:
        guided = self.guidance_scale > 1.0
        return Shape(
            self.model_revision, self.width, self.height, self.steps, guided, self.prompt_chunks, self.first_step
        )

    def canonical(self) -> dict[str, Any]:
        """What a render key is computed from. Its names are written out, so renaming an attribute changes no key.

        Keys of stored images must not change: these eight fields are always included, and a field that is added later
        only if it differs from its default.
        """
        return {
            "model_revision": self.model_revision,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
        } | {name: value for name, default in _later(type(self)).items() if (value := getattr(self, name)) != default}  # type: ignore[arg-type]  # a class is hashable

    def render_key(self, output_format: str, output_compression: int | None = None, embed_prompt: bool = False) -> str:
        """sha256, in hex, of the canonical spec and of the options of the file in which its pixels are stored."""
        canonical = self.canonical() | {"format": output_format}
        if output_compression is not None:
            canonical["compression"] = output_compression
        if embed_prompt:
            canonical["embed_prompt"] = True
        return hashlib.sha256(_ENCODER.encode(canonical).encode()).hexdigest()


@lru_cache
def _later(kind: Any) -> dict[str, Any]:
    """The fields that were added later, with their defaults."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class Image:
    """One claimed image: its place in the job, its spec, and the file that it becomes.

    `output_compression` is the quality of a lossy format, 0..100, or None for the format's default. `embed_prompt`: the
    prompt is written into the file. `dedupe`: a stored image with the same render key and reproducibility class may be
    copied instead of rendering. `input_key` is the object of the input picture. `in_shards`: it is stored in one object
    with the other images of its job in the claim.
    """

    job_id: int
    index: int
    tenant_id: int
    spec: Spec
    output_format: OutputFormat
    output_compression: int | None = None
    embed_prompt: bool = False
    dedupe: bool = False
    input_key: str | None = None
    in_shards: bool = False

    @property
    def render_key(self) -> str:
        return self.spec.render_key(self.output_format, self.output_compression, self.embed_prompt)


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on images of one shape. `id` is never reused: it is the fencing token. `reproducibility_class` is the one
    that was asked for, "" if any will do. `seconds`: how long rendering it is expected to take, 0 if that is not known.
    `suspect`: its images are quarantined, so nothing may be rendered beside them.
    """

    id: int
    shape: Shape
    images: tuple[Image, ...]
    lease_seconds: float
    fresh_jobs: tuple[int, ...] = ()  # jobs that had no claim before this one
    reproducibility_class: str = ""
    seconds: float = 0.0
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What the object store holds for one image, as the queue records it. `sha256` is 32 raw bytes.

    `device`, `reproducibility_class` and `versions` are those of the worker that rendered it; `versions` None: not
    known. `truncated`, `flagged` (None: no checker ran) and `unknown_words` are the model's remarks. `render_key` is 32
    raw bytes. `reused`: copied from an earlier image of the same key and class, not rendered. `scores` by name, each
    None if its scorer failed; None: nobody scored it. `phash` are 64 bits.
    """

    job_id: int
    index: int
    object_key: str
    sha256: bytes
    bytes: int
    device: str
    reproducibility_class: str
    versions: str | None
    truncated: bool
    flagged: bool | None
    unknown_words: tuple[str, ...]
    render_seconds: float
    render_key: Digest | None = None
    reused: bool = False
    scores: Mapping[str, float | None] | None = None
    phash: int | None = None


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that will never be rendered, with a stable code and a sentence for people."""

    job_id: int
    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a pipeline serves. Workers publish it, and submissions are checked against it.

    `sizes` are (width, height) in pixels, `batch_sizes` the declared sizes, largest first. `redraws`: it takes input
    pictures.
    """

    name: str
    revision: str
    sizes: tuple[tuple[int, int], ...]
    max_steps: int
    batch_sizes: tuple[int, ...]
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
    license: License | None = None
    long_prompts: str | None = None  # long_prompts.describe; None: what is too long for the text encoder is cut
    redraws: bool = False
