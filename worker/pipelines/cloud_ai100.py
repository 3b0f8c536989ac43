"""The Cloud AI 100 pipeline: a model's ONNX graphs, compiled to programs and run through the vendor's SDK.

Guidance and solver stay on the host, in the loop of `diffusion.py`; the folder `ai100/` has the parts. AI100.md says
what could not be run without a card.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from services.core.model.errors import SettingsError
from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.model import directory
from worker.pipeline import Batch, CompileFailed, DeviceSick, InvalidOutput, OnStep, Picture, artefacts
from worker.pipelines import diffusion
from worker.pipelines.ai100 import cards, compiling, overlap, placement
from worker.pipelines.ai100.cards import UNET, VAE_DECODER, Card
from worker.pipelines.ai100.networks import Ai100Backend, Ai100Compiled
from worker.pipelines.ai100.placement import Plan
from worker.pipelines.ai100.programs import Programs, Target
from worker.pipelines.ai100.sdk import DeviceInfo, Sdk, explain
from worker.pipelines.ai100.session import Device
from worker.pipelines.ai100.station import Station
from worker.pipelines.diffusion import DiffusionPipeline
from worker.pipelines.out_of_memory import out_of_memory_for

DEVICES = re.compile(r"qaic:(\d+(?:,\d+)*)")


def open_pipeline(settings: Settings) -> "Ai100Pipeline":
    """The model in PRESSWORK_MODEL_DIR on the devices in PRESSWORK_DEVICE. What is missing is compiled now, for all
    sizes, since a claim would not wait for it. Raises SettingsError or CompileFailed, in one sentence."""
    folder = diffusion.checked_folder(settings)
    sdk = Sdk(settings.ai100_sdk)
    chosen = choose_devices(sdk.devices(), settings.device)
    target = target_of(settings, sdk, chosen[0])
    programs = Programs(folder, artefacts(settings), target, settings.ai100_program_batch)
    index = directory.with_sizes(folder, programs.index, settings.sizes)
    chosen_plan = plan_of(settings, target.card, index.default_steps, len(chosen))
    stations = [
        Station(Device(sdk, info.number), place, programs, data_path=data_path(settings))
        for info, place in zip(chosen, chosen_plan.placements, strict=True)
    ]
    programs.find_all(chosen_plan.programs, index.sizes)
    exported = programs.exported(index.default_size)
    return Ai100Pipeline(
        Ai100Backend(programs, target, stations, exported.latent_channels), index, programs.revision,
        directory.read_sampler_config(folder), exported.prompts(), settings.batch_sizes,
        diffusion.safety_checker(settings, folder, "cpu"),
    )  # fmt: skip


class Ai100Pipeline(DiffusionPipeline):
    """Renders a batch pass by pass, with their stages overlapping as the placement allows."""

    _backend: Ai100Backend

    @property
    def ai100(self) -> Ai100Backend:
        """The devices, for those who measure them."""
        return self._backend

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        """As every pipeline. Padding is not rendered, since passes are smaller: it gets the last picture. Only
        a single image, such as the canary, is rendered on every device. Raises DeviceSick if they do not agree."""
        return self.begin(batch, on_step).pictures()

    def begin(self, batch: Batch, on_step: OnStep) -> "Decoding":
        """Up to where the last images are being decoded. The next batch then begins wherever the placement has cores
        for it: a program takes its turn after what was asked for before."""
        self.prepare(batch.shape, batch.size)
        compiled, size, wanted = self._backend.compiled(batch.shape, batch.size), batch.size, batch.wanted
        if wanted <= 1:
            wanted = min(size, len(self._backend.having(UNET)) * compiled.images_a_pass)
        drawn = replace(batch, specs=batch.specs[:wanted], inputs=batch.inputs[:wanted])
        with self._faults(batch):
            (text,), truncated = self._encode(compiled, drawn)
            try:
                if batch.inputs:
                    compiled.encode_inputs(drawn.inputs)
                parts = compiled.passes(wanted)
                stages = overlap.Overlap(
                    compiled, overlap.lanes(self._backend.having(UNET), len(parts)), self._backend.having(VAE_DECODER),
                    parts, text, lambda rows: self._solver(compiled, _rows_of(drawn, rows)), _apart(on_step),
                )  # fmt: skip
                stages.start()
            finally:
                compiled.forget_inputs()
        return Decoding(self, compiled, batch, drawn.specs, truncated, stages)

    def decoded(self, decoding: "Decoding") -> Sequence[Picture | InvalidOutput]:
        """The pictures of a batch, as soon as they are decoded."""
        batch, specs = decoding.batch, decoding.specs
        with self._faults(batch):
            latents, pixels, finite = decoding.stages.finish()
            if batch.wanted <= 1 and finite.any() and not finite.all():
                raise DeviceSick(f"One of {self.device} gave invalid output for an image that another one drew.")
            exact = diffusion.decode_overflown(decoding.compiled, latents, finite)
        found = self._pictures(specs, decoding.truncated, pixels, finite, exact)
        return [*found, *found[-1:] * (batch.size - len(specs))]

    @contextlib.contextmanager
    def _faults(self, batch: Batch) -> Iterator[None]:
        """A program that no longer fits, or that cannot be loaded again, is no prompt's fault. What `on_step` raises
        is not the device's."""
        raised = None
        with self._evict_if_out_of_memory(batch.shape, batch.size), out_of_memory_for(batch.size):
            try:
                yield
            except SettingsError as error:
                raise CompileFailed(str(error)) from error
            except _StepRaised as step:
                raised = step.error
        if raised is not None:
            raise raised

    def _encode_empty_prompt(self, compiled: diffusion.Compiled, size: int) -> list[diffusion.Array]:  # noqa: ARG002
        """The same for every batch, since a text is encoded in a pass of its own."""
        return super()._encode_empty_prompt(compiled, self._backend.programs.batch)


class _StepRaised(BaseException):
    """`on_step` raised this."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


def _apart(on_step: OnStep) -> OnStep:
    """The same, with what it raises told apart from the errors of the device."""

    def report(step: int) -> None:
        try:
            on_step(step)
        except BaseException as error:
            raise _StepRaised(error) from None

    return report


@dataclass(frozen=True, slots=True)
class Decoding:
    """A batch that is being decoded."""

    pipeline: Ai100Pipeline
    compiled: Ai100Compiled
    batch: Batch
    specs: Sequence[Spec]  # those that are drawn
    truncated: Sequence[bool]
    stages: overlap.Overlap

    @property
    def ready(self) -> bool:
        return self.stages.ready

    def pictures(self) -> Sequence[Picture | InvalidOutput]:
        return self.pipeline.decoded(self)

    def drop(self) -> None:
        self.stages.settle()


def choose_devices(found: Sequence[DeviceInfo], text: str) -> list[DeviceInfo]:
    """The devices of PRESSWORK_DEVICE, such as qaic:0,1; cpu, its default, is the first one. Raises SettingsError."""
    named = DEVICES.fullmatch(text)
    if named is None and text not in ("cpu", "qaic"):
        raise SettingsError(
            f"PRESSWORK_DEVICE is {text!r}; with the pipeline ai100 it can be qaic:0, or qaic:0,1 for two."
        )
    if not found:
        raise SettingsError(
            "qaic-util lists no Cloud AI device; is the card in this machine, and the SDK's driver loaded?"
        )
    numbers = list(dict.fromkeys(map(int, named[1].split(",")))) if named else [found[0].number]
    by_number = {info.number: info for info in found}
    if missing := [number for number in numbers if number not in by_number]:
        there = ", ".join(map(str, by_number))
        raise SettingsError(f"PRESSWORK_DEVICE names device {missing[0]}; there are {there}.")
    for number in numbers:
        if not by_number[number].ready:
            raise SettingsError(explain(_Status, f"Device {number} is not ready"))
    chosen = [by_number[number] for number in numbers]
    kinds = {(info.sku, info.cores, info.hardware) for info in chosen}
    if len(kinds) > 1:
        raise SettingsError("PRESSWORK_DEVICE names devices of different kinds; give each kind a worker of its own.")
    return chosen


def target_of(settings: Settings, sdk: Sdk, info: DeviceInfo) -> Target:
    overrides = compiling.read_overrides(settings.ai100_flags)
    if settings.precision not in ("", Ai100Backend.precision):
        raise SettingsError(
            f"PRESSWORK_PRECISION is {settings.precision}; with the pipeline ai100 it can only be fp16."
        )
    return Target(sdk, sdk.version(), cards.card_of(info.sku, info.cores), info.hardware, overrides)


def plan_of(settings: Settings, card: Card, steps: int, devices: int) -> Plan:
    """PRESSWORK_AI100_PLACEMENT, or the fastest one by the table of times. Raises SettingsError."""
    times, dps = cards.read_times(settings.ai100_times), data_path(settings)
    if not settings.ai100_placement:
        return placement.plan(card, times, steps, max(settings.batch_sizes), devices, dps=dps)
    found = placement.read_plan(settings.ai100_placement, devices)
    for one in found.placements:
        if one.cores > card.cores:
            raise SettingsError(
                f"PRESSWORK_AI100_PLACEMENT takes {one.cores} cores ({one}) and an {card.name} has {card.cores}; use"
                f" {placement.best(card, times, steps, max(settings.batch_sizes), dps=dps)}, or leave it empty."
            )
    return found


def data_path(settings: Settings) -> bool:
    """Whether the device is to switch by itself: if that is allowed, and the table of times has it faster."""
    times = cards.read_times(settings.ai100_times)
    return settings.ai100_data_path and times.switch_dps < times.switch


class _Status:
    name = "QS_DEV_ERROR"  # what the SDK calls it


def _rows_of(batch: Batch, rows: slice) -> Batch:
    return replace(batch, specs=batch.specs[rows], inputs=batch.inputs[rows], wanted=rows.stop - rows.start)
