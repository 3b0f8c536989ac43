"""`presswork ai100 check`: everything that could not be run without a card, in one table beside what it should be."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from services.core.model.errors import PressworkError
from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.model import directory
from worker.pipeline import Batch, Picture
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100 import cards, placement
from worker.pipelines.ai100.cards import NETWORKS, VAE_ENCODER
from worker.pipelines.ai100.sdk import Sdk
from worker.pipelines.ai100.session import Session
from worker.pipelines.cloud_ai100 import Ai100Pipeline
from worker.pipelines.diffusion import DiffusionPipeline

PUBLISHED_SECONDS = {10: 0.971, 16: 1.335}  # of the model card, an image
IMAGES, REPEATS = 16, 10
SHARE = 0.93  # of what the table allows, or the model card says; less fails
COMPILED = (*NETWORKS, VAE_ENCODER)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    place: str
    found: str
    beside: str = ""
    failed: bool = False


def run(settings: Settings, say: Say) -> int:
    """Prints the table as it grows; 1 if anything failed. A place that fails does not stop those that need it not."""
    failed = 0
    say(f"{'place':<40} {'found':<44} beside")
    for row in rows(settings):
        failed += row.failed
        say(f"{row.place:<40} {row.found:<44} {row.beside}".rstrip())
    say(f"{failed} failed" if failed else "all of it ran")
    return 1 if failed else 0


def rows(settings: Settings) -> Iterator[Row]:
    sdk, folder = Sdk(settings.ai100_sdk), directory.locate(settings.model_dir)
    settings = replace(settings, sizes=(directory.read_index(folder).default_size,))
    yield from _tried("the SDK's modules", lambda: Row("the SDK's modules", f"version {sdk.version()}"))
    yield from _tried("qaic-util lists devices", lambda: _devices(sdk))
    pipelines: list[Ai100Pipeline] = []

    def opened() -> Row:
        began = time.monotonic()
        pipelines.append(cloud_ai100.open_pipeline(replace(settings, batch_sizes=(IMAGES, 1))))
        shape = _specs(pipelines[0], 1, 10)[0].shape
        pipelines[0].prepare(shape, IMAGES)
        return Row("export, compile, validate, load", f"{time.monotonic() - began:.0f} s", pipelines[0].device_kind)

    yield from _tried("export, compile, validate, load", opened)
    if not pipelines:
        return
    pipeline = pipelines[0]
    try:
        yield from _tried("the compiler", lambda: _compiled(sdk, pipeline))
        yield from _networks(settings, pipeline)
        yield from _tried("overlap changes no byte", lambda: _same(pipeline))
        yield from _tried("the device computes what the host does", lambda: _near(pipeline))
        bound = placement.bound(*_table(settings, pipeline)) / 1000
        seconds: list[float] = []

        def ours() -> Row:
            seconds.append(_seconds(pipeline, IMAGES, 10))
            return beside_the_bound(bound, seconds[0])

        yield from _tried("an image", ours)
    finally:
        pipeline.close()
    yield from _published(settings)


def beside_the_bound(bound: float, seconds: float) -> Row:
    share = bound / seconds
    found, beside = f"{seconds:.3f} s, {share:.2f} of the bound", f"bound by the table {bound:.3f} s; {SHARE} of it"
    return Row(f"an image, 10 iterations, of {IMAGES}", found, beside, share < SHARE)


def beside_the_published(found: Mapping[int, float]) -> Row:
    """Seconds an image, by the number of iterations."""
    times, published = (", ".join(f"{one:.3f} s" for one in row.values()) for row in (found, PUBLISHED_SECONDS))
    slow = any(seconds > PUBLISHED_SECONDS[steps] / SHARE for steps, seconds in found.items())
    return Row("published placement, 10 and 16", times, f"{published} on the model card", slow)


def _compiled(sdk: Sdk, pipeline: Ai100Pipeline) -> Row:
    """Into a fresh folder: of programs that are there already, nothing would be compiled."""
    began, lines = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for network in COMPILED:
            into, cores = Path(folder, network), pipeline.ai100.having(network)[0].cores(network)
            into.mkdir()
            pipeline.ai100.programs.compile_into(into, network, pipeline.card.default_size, cores, 1, lines.append)
    found = f"{sdk.compiler().name}: {len(COMPILED)} programs in {time.monotonic() - began:.0f} s"
    return Row("the compiler", found, "qaic-compile")


def _devices(sdk: Sdk) -> Row:
    found = sdk.devices()
    words = [f"{one.number}: {one.sku} {one.cores_free}/{one.cores} cores" for one in found]
    return Row("qaic-util lists devices", "; ".join(words) or "none", "each Ready", not all(one.ready for one in found))


def _networks(settings: Settings, pipeline: Ai100Pipeline) -> Iterator[Row]:
    """Each program's switch and run, beside the table's; and a line that makes the table what was measured."""
    times, measured, switches = cards.read_times(settings.ai100_times), [], []
    for network in NETWORKS:

        def timed(network: str = network) -> Row:
            station = pipeline.ai100.having(network)[0]
            cores, batch = station.cores(network), settings.ai100_program_batch
            session = station.session(network, pipeline.card.default_size)
            station.release()
            began = time.monotonic()
            session.activate()
            switch = (time.monotonic() - began) * 1000
            inputs = _zeros(session)
            session.run(inputs)
            began = time.monotonic()
            for _ in range(REPEATS):
                session.run(inputs)
            ran = (time.monotonic() - began) * 1000 / REPEATS / batch
            session.deactivate()
            measured.append(f"{network}={ran:.2f}x{cores}")
            switches.append(switch)
            beside = f"{times.run(network, cores):.1f} ms, {times.switch:.0f} ms"
            return Row(f"{network}, {cores} cores", f"{ran:.1f} ms an image, switched to in {switch:.0f} ms", beside)

        yield from _tried(network, timed)
    if len(measured) == len(NETWORKS):
        line = ",".join((*measured, f"switch={sum(switches) / len(switches):.0f}"))
        yield Row("the table as measured", f"PRESSWORK_AI100_TIMES={line}")


def _same(pipeline: Ai100Pipeline) -> Row:
    specs = _specs(pipeline, 4, 4)
    batch = Batch(specs[0].shape, specs, len(specs))
    overlapped, serial = pipeline.render(batch, _ignore), DiffusionPipeline.render(pipeline, batch, _ignore)
    same = [_pixels(one) == _pixels(other) for one, other in zip(overlapped, serial, strict=True)]
    return Row("overlap changes no byte", f"{sum(same)} of {len(same)} equal", "all", not all(same))


def _near(pipeline: Ai100Pipeline) -> Row:
    """Decoded by the card, beside the same latents decoded by the host in float32."""
    shape = _specs(pipeline, 1, 4)[0].shape
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


def _published(settings: Settings) -> Iterator[Row]:
    """One image a batch in the published placement."""

    def open_recipe() -> Row:
        recipe = replace(settings, ai100_placement=str(placement.RECIPE), batch_sizes=(1,), ai100_program_batch=1)
        pipeline = cloud_ai100.open_pipeline(recipe)
        try:
            return beside_the_published({steps: _seconds(pipeline, 1, steps) for steps in PUBLISHED_SECONDS})
        finally:
            pipeline.close()

    yield from _tried("published placement, 10 and 16", open_recipe)


def _tried(place: str, verb: Callable[[], Row]) -> Iterator[Row]:
    try:
        yield verb()
    except PressworkError as error:
        yield Row(place, f"failed: {error}", failed=True)
    except Exception as error:  # of bindings that nobody has run: a TypeError, say
        yield Row(place, f"failed: {type(error).__name__}: {error}", failed=True)


def _table(settings: Settings, pipeline: Ai100Pipeline) -> tuple[cards.Card, cards.Times, int]:
    return pipeline.ai100.card, cards.read_times(settings.ai100_times), 10


def _seconds(pipeline: Ai100Pipeline, images: int, steps: int) -> float:
    """Of an image, in the second of two batches."""
    specs = _specs(pipeline, images, steps)
    pipeline.render(Batch(specs[0].shape, specs, images), _ignore)
    began = time.monotonic()
    pipeline.render(Batch(specs[0].shape, specs, images), _ignore)
    return (time.monotonic() - began) / images


def _specs(pipeline: Ai100Pipeline, count: int, steps: int) -> tuple[Spec, ...]:
    card = pipeline.card
    usual = (card.revision, "a red mug on a table", "blurred")
    return tuple(Spec(*usual, seed, *card.default_size, steps, 7.5) for seed in range(count))


def _zeros(session: Session) -> dict[str, np.ndarray]:
    inputs = [one for one in session.bindings.values() if one.is_input]
    return {one.name: np.zeros(one.shape, one.dtype) for one in inputs}


def _pixels(found: object) -> bytes:
    assert isinstance(found, Picture)
    return found.pixels.tobytes()


def _ignore(_step: int) -> None:
    pass
