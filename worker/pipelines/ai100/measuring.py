"""What `presswork ai100 check` measures and compares on a card: each function gives a row of its table, or several."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.core.model.errors import PressworkError
from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.pipeline import Batch, Picture
from worker.pipelines.ai100 import cards, placement
from worker.pipelines.ai100.cards import NETWORKS, UNET, VAE_DECODER, VAE_ENCODER
from worker.pipelines.ai100.sdk import Sdk
from worker.pipelines.ai100.session import Session
from worker.pipelines.cloud_ai100 import Ai100Pipeline
from worker.pipelines.diffusion import DiffusionPipeline

PUBLISHED_SECONDS = {10: 0.971, 16: 1.335}  # of the model card, an image
IMAGES, REPEATS = 16, 10
SHARE = 0.93  # of what the table allows, or the model card says; less fails
COMPILED = (*NETWORKS, VAE_ENCODER)
PROGRAM_BATCH = 2  # images of one pass, where there are several


@dataclass(frozen=True, slots=True)
class Row:
    place: str
    found: str
    beside: str = ""
    failed: bool = False


def tried(place: str, verb: Callable[[], Row]) -> Iterator[Row]:
    try:
        yield verb()
    except PressworkError as error:
        yield Row(place, f"failed: {error}", failed=True)
    except Exception as error:  # of bindings that nobody has run: a TypeError, say
        yield Row(place, f"failed: {type(error).__name__}: {error}", failed=True)


def beside_the_bound(bound: float, seconds: float) -> Row:
    share = bound / seconds
    found, beside = f"{seconds:.3f} s, {share:.2f} of the bound", f"bound by the table {bound:.3f} s; {SHARE} of it"
    return Row(f"an image, 10 iterations, of {IMAGES}", found, beside, share < SHARE)


def beside_the_published(found: Mapping[int, float]) -> Row:
    """Seconds an image, by the number of iterations."""
    times, published = (", ".join(f"{one:.3f} s" for one in row.values()) for row in (found, PUBLISHED_SECONDS))
    slow = any(seconds > PUBLISHED_SECONDS[steps] / SHARE for steps, seconds in found.items())
    return Row("published placement, 10 and 16", times, f"{published} on the model card", slow)


def compiled(sdk: Sdk, pipeline: Ai100Pipeline) -> Row:
    """Into a fresh folder: of programs that are there already, nothing would be compiled."""
    began, lines = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for network in COMPILED:
            into, cores = Path(folder, network), pipeline.ai100.having(network)[0].cores(network)
            into.mkdir()
            pipeline.ai100.programs.compile_into(into, network, pipeline.card.default_size, cores, 1, lines.append)
    found = f"{sdk.compiler().name}: {len(COMPILED)} programs in {time.monotonic() - began:.0f} s"
    return Row("the compiler", found, "qaic-compile")


def devices(sdk: Sdk) -> Row:
    found = sdk.devices()
    words = [f"{one.number}: {one.sku} {one.cores_free}/{one.cores} cores" for one in found]
    return Row("qaic-util lists devices", "; ".join(words) or "none", "each Ready", not all(one.ready for one in found))


def networks(settings: Settings, pipeline: Ai100Pipeline) -> Iterator[Row]:
    """Each program's switch and run, beside the table's; and a line that makes the table what was measured."""
    times, measured, switches = cards.read_times(settings.ai100_times), [], []
    for network in (*NETWORKS, VAE_ENCODER):

        def timed(network: str = network) -> Row:
            station = pipeline.ai100.having(network)[0]
            cores, batch = station.cores(network), 1 if network == VAE_ENCODER else settings.ai100_program_batch
            session = station.session(network, pipeline.card.default_size)
            station.release()
            switch, inputs = _milliseconds(session.activate), _zeros(session)
            session.run(inputs)
            ran = sum(_milliseconds(lambda: session.run(inputs)) for _ in range(REPEATS)) / REPEATS / batch
            session.deactivate()
            measured.append(f"{network}={ran:.2f}x{cores}")
            switches.append(switch)
            beside = f"{times.run(network, cores):.1f} ms, {times.switch:.0f} ms"
            return Row(f"{network}, {cores} cores", f"{ran:.1f} ms an image, switched to in {switch:.0f} ms", beside)

        yield from tried(network, timed)
    if len(measured) == len(NETWORKS) + 1:
        line = ",".join((*measured, f"switch={sum(switches) / len(switches):.0f}"))
        yield Row("the table as measured", f"PRESSWORK_AI100_TIMES={line}")


def same(place: str, pipeline: Ai100Pipeline, inputs: tuple[Any, ...] = (), **changes: Any) -> Row:
    specs = tuple(replace(spec, **changes) for spec in specs_of(pipeline, 4, 4))
    batch = Batch(specs[0].shape, specs, len(specs), inputs)
    overlapped, serial = pipeline.render(batch, _ignore), DiffusionPipeline.render(pipeline, batch, _ignore)
    same = [_pixels(one) == _pixels(other) for one, other in zip(overlapped, serial, strict=True)]
    return Row(place, f"{sum(same)} of {len(same)} equal", "all", not all(same))


def near(pipeline: Ai100Pipeline) -> Row:
    """Decoded by the card, beside the same latents decoded by the host in float32."""
    shape = specs_of(pipeline, 1, 4)[0].shape
    compiled = pipeline.ai100.compiled(shape, 1)
    width, height = pipeline.card.default_size
    latents = np.random.default_rng(7).standard_normal((1, pipeline.ai100.latent_channels, height // 8, width // 8))
    latents = latents.astype(np.float32)
    exact = compiled.decode_exactly(latents)
    pixels, finite = compiled.decode(latents)
    assert exact is not None
    off = np.abs(pixels.astype(int) - exact[0].astype(int))
    found = f"{off.mean():.2f} levels apart, {off.max()} at most" if finite.all() else "not finite"
    return Row("the device computes what the host does", found, "about 0.1, FP16", not finite.all() or off.mean() > 2)


def published(pipeline: Ai100Pipeline) -> Row:
    """One image a batch in the published placement."""
    return beside_the_published({steps: seconds_an_image(pipeline, 1, steps) for steps in PUBLISHED_SECONDS})


def data_path(pipeline: Ai100Pipeline) -> Row:
    """The same, the device switching by itself, as the published example has it. A switch is what a run that follows
    another program's takes longer than the next one."""
    seconds, station = seconds_an_image(pipeline, 1, 10), pipeline.ai100.stations[0]
    unet, decoder = (station.session(network, pipeline.card.default_size) for network in (UNET, VAE_DECODER))
    decoder.run(_zeros(decoder))
    first, second = (_milliseconds(lambda: unet.run(_zeros(unet))) for _ in range(2))
    found = f"{seconds:.3f} s an image, switch_dps={max(0.0, first - second):.0f}"
    return Row("data-path switching", found, "the row above; PRESSWORK_AI100_DATA_PATH=1")


def one_after_the_other(pipeline: Ai100Pipeline) -> Row:
    """Each is decoded while the next one is denoised, if the programs are resident side by side."""
    place = pipeline.ai100.stations[0].placement
    allowed = placement.busiest_ms(place, cards.PUBLISHED, 10) / 1000
    specs = specs_of(pipeline, 1, 10)
    batch = Batch(specs[0].shape, specs, 1)
    pipeline.render(batch, _ignore)
    before, began = pipeline.begin(batch, _ignore), time.monotonic()
    for _ in range(REPEATS):
        before, earlier = pipeline.begin(batch, _ignore), before
        earlier.pictures()
    seconds = (time.monotonic() - began) / REPEATS
    before.pictures()
    slow = seconds > allowed / SHARE
    return Row("batches of one image", f"{seconds:.3f} s an image", f"{allowed:.3f} s allows {place}", slow)


def several(pipeline: Ai100Pipeline) -> Row:
    """A picture of a program for several images depends on no other one and on no place."""
    specs = specs_of(pipeline, 3, 4)
    found, others = (
        [_pixels(one) for one in pipeline.render(Batch(specs[0].shape, (*chosen, chosen[-1]), 3), _ignore)[:3]]
        for chosen in (specs, specs[::-1])
    )
    same = sum(one == other for one, other in zip(found, others[::-1], strict=True))
    place = "programs of several images"
    return Row(place, f"{pipeline.ai100.programs.batch} a pass: {same} of 3 equal in other places", "all", same < 3)


def redrawn(pipeline: Ai100Pipeline) -> Row:
    width, height = pipeline.card.default_size
    pictures = [np.full((height, width, 3), shade, np.uint8) for shade in (40, 200)]
    return same("redrawn pictures", pipeline, (*pictures, *pictures), input_sha256="picture", first_step=2)


def long_prompt(pipeline: Ai100Pipeline) -> Row:
    if pipeline.card.long_prompts is None:
        return Row("a long prompt", "this model reads none")
    prompt = "a red mug on a wooden table " * 15
    return same("a long prompt", pipeline, prompt=prompt, prompt_chunks=2)


def table(settings: Settings, pipeline: Ai100Pipeline) -> tuple[cards.Card, cards.Times, int]:
    return pipeline.ai100.card, cards.read_times(settings.ai100_times), 10


def seconds_an_image(pipeline: Ai100Pipeline, images: int, steps: int) -> float:
    """Of an image, in the second of two batches."""
    specs = specs_of(pipeline, images, steps)
    pipeline.render(Batch(specs[0].shape, specs, images), _ignore)
    began = time.monotonic()
    pipeline.render(Batch(specs[0].shape, specs, images), _ignore)
    return (time.monotonic() - began) / images


def specs_of(pipeline: Ai100Pipeline, count: int, steps: int) -> tuple[Spec, ...]:
    card = pipeline.card
    usual = (card.revision, "a red mug on a table", "blurred")
    return tuple(Spec(*usual, seed, *card.default_size, steps, 7.5) for seed in range(count))


def _milliseconds(verb: Callable[[], object]) -> float:
    began = time.monotonic()
    verb()
    return (time.monotonic() - began) * 1000


def _zeros(session: Session) -> dict[str, np.ndarray]:
    inputs = [one for one in session.bindings.values() if one.is_input]
    return {one.name: np.zeros(one.shape, one.dtype) for one in inputs}


def _pixels(found: object) -> bytes:
    assert isinstance(found, Picture)
    return found.pixels.tobytes()


def _ignore(_step: int) -> None:
    pass
