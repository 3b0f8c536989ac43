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


def batch_ms(placement: Placement, times: Times, steps: int, images: int, *, dps: bool = False) -> float:
    """How long a batch of `images` takes on one device, one image a pass, the batch before having left the device as
    this one does: all texts, then the U-Net's runs, each image's decoding as soon as the cores allow."""
    switch = times.switch_dps if dps else times.switch
    text, step, decode = (times.run(network, placement.slot_of(network).cores) for network in NETWORKS)
    begun = switch if len(placement.slot_of(TEXT_ENCODER).networks) > 1 else 0.0
    encoded = begun + images * text
    resident = len(placement.slot_of(UNET).networks) == 1
    denoised = encoded + (0.0 if resident else switch)
    alone = len(placement.slot_of(VAE_DECODER).networks) == 1
    if placement.share(UNET, VAE_DECODER):
        return denoised + images * (steps * step + decode) + switch
    free = encoded if alone else encoded + switch
    for _ in range(images):
        denoised += steps * step
        free = max(free, denoised) + decode
    return free


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
    """How long a batch takes if `workers` devices run the U-Net and the master everything else."""
    text, decode = (times.run(network, master.slot_of(network).cores) for network in (TEXT_ENCODER, VAE_DECODER))
    denoise = steps * times.run(UNET, card.cores)
    encoded = free = images * text
    for image in range(images):
        denoised = encoded + (image // workers + 1) * denoise
        free = max(free, denoised) + decode
    return free


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
