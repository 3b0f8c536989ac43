"""Exports a model for accelerators: for each batch size one ONNX graph a network, with static shapes.

The graphs of all batch sizes refer to one file of weights a network. `static_graphs.py` describes what lies on disk.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.core.model import long_prompts
from services.core.model.errors import SettingsError
from worker.model import (
    checkpoint,
    directory,
    drafts,
    latent_scale,
    networks,
    onnx_files,
    static_graphs,
    static_rules,
    verify,
)
from worker.model.checkpoint import Checkpoint
from worker.model.directory import SIZE_UNIT, Index
from worker.model.static_graphs import TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER, Clipped, Exported, Graph
from worker.model.static_stages import ImageDecoder, ImageEncoder, TextDenoiser, TextStates
from worker.model.text import Prompts

OPSET = 18  # the compiler's own exporter uses it, and the decoder cannot be expressed in 17
MAX_BATCH = 64
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

Say = Callable[[str], None]
Arguments = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Network:
    """A network, and example arguments by name for each of its graphs, which are those of `variants`: a batch size and
    a number of chunks."""

    name: str
    module: nn.Module
    output: str
    variants: Sequence[tuple[int, int]]
    arguments: Callable[[int, int], Arguments]


def export(
    folder: Path, out: Path, *, size: tuple[int, int], batches: Sequence[int], precision: str,
    chunks: Sequence[int] = (1,), image_to_image: bool = False, say: Say = lambda _: None,
) -> Exported:  # fmt: skip
    """Writes the model in `folder` to `out`, which appears complete or not at all. `size` is (width, height).

    For batches of N images, `text_encoder` reads N prompts, `unet` both guidance halves of N images, and `vae_decoder`
    gives N pictures. `chunks` are the lengths of prompts, in chunks, that get a U-Net of their own. `image_to_image`
    adds a `vae_encoder` for one picture. `precision` is fp32 or fp16, that of inputs and outputs too. Constants outside
    FP16's range are clipped to it.

    Raises:
        FolderTaken: `out` is neither absent nor empty.
        SettingsError: the model is unusable, or cannot be exported with this size, batch or length of prompts; or `out`
            cannot be written.
    """
    batches, chunks = sorted(set(batches)), sorted(set(chunks))
    index = _checked(folder, size, batches, precision, chunks)
    drafts.check_free(out, "the export")
    with _writable(out), drafts.draft(out) as draft:
        say("loading the model")
        loaded = checkpoint.load(folder)
        prompts = Prompts.of(loaded.tokenizer, loaded.max_tokens)
        (draft / static_graphs.PROMPTS).write_text(prompts.to_json(), encoding="utf-8")
        graphs: list[Graph] = []
        clipped: list[Clipped] = []
        for network in _networks(loaded, prompts.length, size, batches, chunks, image_to_image):
            made, cut = _write(network, draft, DTYPES[precision], say)
            graphs += made
            clipped += cut
        say("hashing the files")
        vae = loaded.vae.config
        Exported(
            draft, index.name, loaded.revision, size, tuple(batches), precision, OPSET, loaded.unet.latent_channels,
            latent_scale.read(vae, vae.latent_channels), tuple(graphs), tuple(clipped), static_graphs.hashed(draft),
        ).write()  # fmt: skip
    return static_graphs.read(out)


def _checked(
    folder: Path, size: tuple[int, int], batches: Sequence[int], precision: str, chunks: Sequence[int]
) -> Index:
    directory.check(folder)
    index, unit = directory.read_index(folder), directory.size_unit(folder)
    if not all(side > 0 and side % unit == 0 for side in size):
        raise SettingsError(
            f"The size is {size[0]}x{size[1]}, but the sides of {index.name}'s pictures are multiples of {unit}."
        )
    if not batches or not all(1 <= batch <= MAX_BATCH for batch in batches):
        raise SettingsError(f"Batches are numbers of images from 1 to {MAX_BATCH}, such as 1,4.")
    if precision not in DTYPES:
        raise SettingsError(f"The precision is {precision!r}; it can be {' or '.join(DTYPES)}.")
    longest = long_prompts.MAX_CHUNKS if index.long_prompts else 1
    if not chunks or not all(1 <= count <= longest for count in chunks):
        raise SettingsError(
            f"Prompts of {index.name} have up to {longest} chunks."
            if index.long_prompts
            else f'Prompts of {index.name} have one chunk, since its model_index.json has no "long_prompts".'
        )
    return index


def _networks(
    loaded: Checkpoint, tokens: int, size: tuple[int, int], batches: list[int], chunks: list[int], image_to_image: bool
) -> Iterator[_Network]:
    width, height = size
    latents = (loaded.unet.latent_channels, height // SIZE_UNIT, width // SIZE_UNIT)
    once = [(batch, 1) for batch in batches]

    def of_text(batch: int, _: int) -> Arguments:
        return {"input_ids": torch.zeros(batch, tokens, dtype=torch.int64)}

    def of_unet(batch: int, count: int) -> Arguments:
        rows = 2 * batch
        text_states = torch.zeros(rows, count * tokens, loaded.unet.text_width)
        return {"latents": torch.zeros(rows, *latents), "timestep": torch.zeros(rows), "text_states": text_states}

    def of_decoder(batch: int, _: int) -> Arguments:
        return {"latents": torch.zeros(batch, *latents)}

    def of_encoder(batch: int, _: int) -> Arguments:
        return {"image": torch.zeros(batch, 3, height, width)}

    yield _Network(TEXT_ENCODER, TextStates(loaded.text_encoder, tokens), "text_states", once, of_text)
    pairs = [(batch, count) for batch in batches for count in chunks]
    yield _Network(UNET, TextDenoiser(loaded.unet), "noise_pred", pairs, of_unet)
    yield _Network(VAE_DECODER, ImageDecoder(loaded.vae), "image", once, of_decoder)
    if image_to_image:
        yield _Network(VAE_ENCODER, ImageEncoder(loaded.vae), "moments", [(1, 1)], of_encoder)


def _write(network: _Network, draft: Path, dtype: torch.dtype, say: Say) -> tuple[list[Graph], list[Clipped]]:
    """Writes the network's weights and graphs. Converts it to `dtype`, in place."""
    name = network.name
    if bad := verify.not_finite(network.module):
        raise SettingsError(
            f"The model's {name} has NaN or infinite numbers in {len(bad)} of its tensors, {bad[0]} for one."
        )
    clipped = static_rules.clip_weights(name, network.module)
    module = network.module.to(dtype)
    weights = onnx_files.Weights(f"{name}.bin", module.state_dict())
    weights.write(draft / weights.name)
    graphs = []
    for batch, chunks in network.variants:
        file, began = f"{name}-{batch}{f'-{chunks}-chunks' if chunks > 1 else ''}.onnx", time.monotonic()
        given = network.arguments(batch, chunks)
        given = {key: one.to(dtype) if one.is_floating_point() else one for key, one in given.items()}

        def finish(model: Any, batch: int = batch, chunks: int = chunks, file: str = file) -> None:
            static_rules.check(name, model.graph)
            clipped.extend(static_rules.clip_constants(name, model.graph))
            sides = (static_rules.describe(side) for side in (model.graph.inputs, model.graph.outputs))
            graphs.append(Graph(name, batch, chunks, file, weights.name, *sides))

        say(f"{file}: exporting")
        with networks.as_settings_error(f"{name} cannot be exported"):
            onnx_files.write(
                module, draft / file, list(given.values()), inputs=list(given), outputs=[network.output], opset=OPSET,
                weights=weights, finish=finish,
            )  # fmt: skip
        say(f"{file}: {time.monotonic() - began:.0f} s")
    return graphs, list(dict.fromkeys(clipped))


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"The export cannot be written to {out}: {error.strerror or error}.") from None
