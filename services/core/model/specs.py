"""The frozen values that travel between the rooms: Spec, Shape, Image, Claim, StoredImage and the model's card.

Plain Python. A value here holds no connection, no tensor and no file.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

OutputFormat = Literal["png", "jpeg", "webp"]
SEED_LIMIT = 2**63
Digest = bytes


def image_seed(seed: int, nth: int) -> int:
    """The seed of the `nth` image, from 0, of a request whose first image has `seed`. `columns.image_seed_sql` says the
    same in SQL."""
    return (seed + nth) % SEED_LIMIT


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be equal for images to share a pass. Sizes in pixels; `guided` is guidance_scale > 1."""

    model_revision: str
    width: int
    height: int
    steps: int
    guided: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """All that decides an image's pixels. `seed` in 0..2^63-1, `guidance_scale` in 0..50, sizes in pixels.

    A field added later needs a default under which the pixels are what they were without it: see `canonical`.
    """

    model_revision: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float

    @property
    def shape(self) -> Shape:
        return Shape(self.model_revision, self.width, self.height, self.steps, self.guidance_scale > 1.0)

    def canonical(self) -> dict[str, Any]:
        """What a render key is made of, under names that no rename of an attribute changes.

        Keys of stored images must not change: these eight are always in it, and a field added later only where it
        differs from its default.
        """
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {
            "model_revision": self.model_revision,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
        } | {name: value for name, default in later.items() if (value := getattr(self, name)) != default}

    def render_key(self, output_format: str, output_compression: int | None = None, embed_prompt: bool = False) -> str:
        """sha256, in hex, of the canonical spec and of what decides the file that its pixels become."""
        canonical = self.canonical() | {"format": output_format}
        if output_compression is not None:
            canonical["compression"] = output_compression
        if embed_prompt:
            canonical["embed_prompt"] = True
        return hashlib.sha256(json.dumps(canonical, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Image:
    """One claimed picture: which it is, what it shows, and what file it becomes.

    `output_compression` is the quality of a lossy format, 0..100, or None for the format's default. `embed_prompt`: the
    file tells the prompt. `dedupe`: a stored image of an equal render key and class will do.
    """

    job_id: int
    index: int
    tenant_id: int
    spec: Spec
    output_format: OutputFormat
    output_compression: int | None = None
    embed_prompt: bool = False
    dedupe: bool = False

    @property
    def render_key(self) -> str:
        return self.spec.render_key(self.output_format, self.output_compression, self.embed_prompt)


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on images taken in one go. `id` is never reused: it is the fencing token."""

    id: int
    shape: Shape
    images: tuple[Image, ...]
    lease_seconds: float
    fresh_jobs: tuple[int, ...] = ()  # jobs of which nothing was claimed before


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What the object store holds for one image, as the ledger records it. `sha256` is 32 raw bytes.

    `device`, `reproducibility_class` and `versions` are of whoever drew it; `versions` None: it did not say.
    `truncated`, `flagged` (None: no checker ran) and `unknown_words` are what its model says about it. `render_key` is
    32 raw bytes; `reused`: copied from an earlier image of that key and class, not rendered.
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


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that will never be rendered, with a stable code and a sentence for people."""

    job_id: int
    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a pipeline serves, as workers publish it and submit checks against it.

    `sizes` are (width, height) in pixels, `batch_sizes` the declared sizes, largest first.
    """

    name: str
    revision: str
    sizes: tuple[tuple[int, int], ...]
    max_steps: int
    batch_sizes: tuple[int, ...]
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
