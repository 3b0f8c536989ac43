"""Which programs share a device's cores: the planner, and the bound that a table of times allows.

Programs of one slot take turns on its cores, and each change of turns is a switch. Slots work side by side.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from services.core.model.errors import SettingsError
from worker.pipelines.ai100.cards import NETWORKS, TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER, Card, Times

# The networks that take turns, in each way that there is.
SHARED = (
    ((TEXT_ENCODER,), (UNET,), (VAE_DECODER,)),
    ((TEXT_ENCODER, VAE_DECODER), (UNET,)),
    ((TEXT_ENCODER,), (UNET, VAE_DECODER)),
    ((TEXT_ENCODER, UNET), (VAE_DECODER,)),
    ((TEXT_ENCODER, UNET, VAE_DECODER),),
)


@dataclass(frozen=True, slots=True)
class Slot:
    networks: tuple[str, ...]
    cores: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The slots of one device."""

    slots: tuple[Slot, ...]

    @property
    def cores(self) -> int:
        return sum(slot.cores for slot in self.slots)

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(network for slot in self.slots for network in slot.networks)

    def slot_of(self, network: str) -> Slot:
        return next(slot for slot in self.slots if network in slot.networks)

    def share(self, one: str, other: str) -> bool:
        """Whether both take turns on the same cores."""
        return other in self.slot_of(one).networks

    def __str__(self) -> str:
        return ",".join(f"{'+'.join(slot.networks)}={slot.cores}" for slot in self.slots)


# The published recipe: everything but the decoder is resident (its input encoder, on a core of its own, is left out).
RECIPE = Placement((Slot((TEXT_ENCODER,), 1), Slot((UNET, VAE_DECODER), 12)))


def bound(card: Card, times: Times, steps: int) -> float:
    """The least milliseconds an image that the table allows on one device: every core does useful work all the time,
    and no time goes into switches."""
    return sum(times.work(network, steps) for network in NETWORKS) / card.cores


def busiest_ms(placement: Placement, times: Times, steps: int) -> float:
    """The least milliseconds an image that a placement allows on one device: the slot with the most work does it all
    the time, and no time goes into switches."""
    return max(
        sum(times.run(network, slot.cores) * (steps if network == UNET else 1) for network in slot.networks)
        for slot in placement.slots
    )


BATCHES = 4  # consecutive ones, of which the last one takes as long as any that follows


def batch_ms(placement: Placement, times: Times, steps: int, images: int, *, dps: bool = False) -> float:
    """How long a batch of `images` takes on one device that has one after the other, one image a pass: all texts, then
    the U-Net's runs, each image's decoding as soon as the cores allow, and the next batch beside the last of them."""
    line = _Timeline(placement, times, times.switch_dps if dps else times.switch)
    ends = [0.0]
    for _ in range(BATCHES):
        end = line.batch(steps, images)
        line.host = max(line.host, ends[-1])  # the pictures of the batch before are taken then
        ends.append(end)
    return ends[-1] - ends[-2]


class _Timeline:
    """What a device does, and until when the host waits for it, in milliseconds."""

    def __init__(self, placement: Placement, times: Times, switch: float) -> None:
        self._placement, self._times, self._switch = placement, times, switch
        self._free: dict[Slot, float] = {}
        self._active: dict[Slot, str] = {}
        self.host = 0.0

    def batch(self, steps: int, images: int) -> float:
        """When a batch that begins now is decoded; the host can then begin the next one."""
        self._switch_to(TEXT_ENCODER)
        self.host = self._run(TEXT_ENCODER, images, self.host)
        self._switch_to(UNET)
        together = self._placement.share(UNET, VAE_DECODER)
        begun = self.host
        if not together:  # the decoder is made resident in the first step
            self._switch_to(VAE_DECODER)
        step = self._times.run(UNET, self._placement.slot_of(UNET).cores)
        denoised, end = max(begun, self.host - step), 0.0
        for _ in range(images):
            denoised = self._run(UNET, steps, denoised)
            if not together:
                end = self._run(VAE_DECODER, 1, denoised)
        self.host = denoised
        if together:
            self._switch_to(VAE_DECODER)
            end = self._run(VAE_DECODER, images, self.host)
        return end

    def _switch_to(self, network: str) -> None:
        slot = self._placement.slot_of(network)
        if len(slot.networks) > 1 and self._active.get(slot) != network:
            self.host = max(self.host, self._free.get(slot, 0.0)) + self._switch
            self._active[slot] = network

    def _run(self, network: str, runs: int, after: float) -> float:
        slot = self._placement.slot_of(network)
        self._free[slot] = max(after, self._free.get(slot, 0.0)) + runs * self._times.run(network, slot.cores)
        return self._free[slot]


def candidates(card: Card) -> Iterator[Placement]:
    """Every placement that fits the card, each of its slots with at least one core."""
    for shared in SHARED:
        for cores in itertools.product(range(1, card.cores + 1), repeat=len(shared)):
            if sum(cores) == card.cores:
                yield Placement(tuple(map(Slot, shared, cores)))


def best(card: Card, times: Times, steps: int, images: int, *, dps: bool = False) -> Placement:
    """The placement in which a batch of `images` is done soonest on one device; of equals, the one with fewer
    switches."""
    return min(candidates(card), key=lambda one: (batch_ms(one, times, steps, images, dps=dps), -len(one.slots)))


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement for each device. The U-Net has as many cores on all of them, since an image's bytes depend on it."""

    placements: tuple[Placement, ...]

    @property
    def programs(self) -> list[tuple[str, int]]:
        """Each network with its cores, the encoder of input pictures too."""
        found = {network: slot.cores for one in self.placements for slot in one.slots for network in slot.networks}
        return [*found.items(), (VAE_ENCODER, found[TEXT_ENCODER])]

    def __str__(self) -> str:
        return ";".join(map(str, dict.fromkeys(self.placements)))


def plan(card: Card, times: Times, steps: int, images: int, devices: int, *, dps: bool = False) -> Plan:
    """For a batch of `images` on `devices` of one card: each device does everything, or the first one encodes and
    decodes for all the others, which hold the U-Net alone; whichever the table makes faster."""
    each = -(-images // devices)
    alike = best(card, times, steps, each, dps=dps)
    soonest = batch_ms(alike, times, steps, each, dps=dps)
    found = (alike,) * devices
    if devices > 1:
        for text in range(1, card.cores):
            master = Placement((Slot((TEXT_ENCODER,), text), Slot((VAE_DECODER,), card.cores - text)))
            needed = _shared_ms(card, master, times, steps, images, devices - 1)
            if needed < soonest:
                worker = Placement((Slot((UNET,), card.cores),))
                soonest, found = needed, (master, *(worker,) * (devices - 1))
    return Plan(found)


def _shared_ms(card: Card, master: Placement, times: Times, steps: int, images: int, workers: int) -> float:
    """How long a batch takes, as for `batch_ms`, if `workers` devices run the U-Net and the master everything else."""
    text, decode = (times.run(network, master.slot_of(network).cores) for network in (TEXT_ENCODER, VAE_DECODER))
    denoise = steps * times.run(UNET, card.cores)
    host, ends = 0.0, [0.0]
    for _ in range(BATCHES):
        encoded, end = host + images * text, ends[-1]
        for image in range(images):
            end = max(end, encoded + (image // workers + 1) * denoise) + decode
        host = max(encoded + -(-images // workers) * denoise, ends[-1])
        ends.append(end)
    return ends[-1] - ends[-2]


def read_plan(text: str, devices: int) -> Plan:
    """A plan as `str` gives it, one placement for all devices, or the first device's and the others'. Raises
    SettingsError."""
    try:
        placements = [
            Placement(
                tuple(
                    Slot(tuple(name.strip() for name in names.split("+")), int(cores))
                    for names, _, cores in (slot.partition("=") for slot in part.split(","))
                )
            )
            for part in text.split(";")
        ]
    except ValueError:
        placements = []
    first, others = (placements[0], placements[-1]) if 1 <= len(placements) <= 2 else (None, None)
    if first is None or others is None or not _is_complete(first, others, alike=len(placements) == 1):
        raise SettingsError(
            f"PRESSWORK_AI100_PLACEMENT is {text!r}; it must give every one of {', '.join(NETWORKS)} to cores, such as"
            " text_encoder=1,unet+vae_decoder=13, or, for several devices, those of the first and those of the others:"
            " text_encoder=1,vae_decoder=13;unet=14."
        )
    return Plan((first, *(others,) * (devices - 1)))


def _is_complete(first: Placement, others: Placement, *, alike: bool) -> bool:
    wanted = sorted(NETWORKS)
    if any(slot.cores < 1 for one in (first, others) for slot in one.slots):
        return False
    if alike:
        return sorted(first.networks) == wanted
    return sorted((*first.networks, *others.networks)) == wanted and others.networks == (UNET,)
