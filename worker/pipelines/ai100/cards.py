"""The cards, and how long each network takes on them: the two tables that the planner reads.

Cores and memory are those of the vendor's architecture page. The times are derived from the model card's two figures
for DeciDiffusion 2.0 at 512x512, one image a pass: 0.971 s in 10 iterations and 1.335 s in 16, thus 60.7 ms an
iteration and 0.364 s beside them, of which the published placement spends two switches. How the rest is shared by text
encoder and decoder is an estimate, and so is that a program's time falls with its cores as 1 / cores.
"""

import re
from dataclasses import dataclass, replace

from services.core.model.errors import SettingsError

TEXT_ENCODER, UNET, VAE_DECODER = NETWORKS = ("text_encoder", "unet", "vae_decoder")
VAE_ENCODER = "vae_encoder"  # of input pictures; it shares the text encoder's cores, and no plan depends on it
FORM = re.compile(r"(\d+(?:\.\d+)?)(?:x(\d+))?")


@dataclass(frozen=True, slots=True)
class Card:
    """`devices`: each card shows as so many devices, with `cores` and `memory_mib` each. `depth_first_mem`: the
    compiler's memory for depth-first order of the decoder, as the published recipes have it."""

    key: str
    name: str
    cores: int
    memory_mib: int
    devices: int
    depth_first_mem: int


CARDS = {
    card.key: card
    for card in (
        Card("standard", "AI 100 Standard", 14, 16_384, 1, 18),
        Card("pro", "AI 100 Pro", 16, 32_768, 1, 32),
        Card("ultra", "AI 100 Ultra", 16, 32_768, 4, 32),
    )
}
# What `qaic-util -q` prints as a device's type.
SKUS = {"PCIe": "standard", "PCIe Pro": "pro", "PCIe Ultra": "ultra", "PCIe Ultra Plus": "ultra"}


def card_of(sku: str, cores: int) -> Card:
    """The card of a device; an unknown type is taken to be the one with as many cores."""
    known = SKUS.get(sku) or next((key for key, card in CARDS.items() if card.cores == cores), "")
    return CARDS[known] if known else Card("other", f"AI 100 {sku}".strip(), cores, 0, 1, 18)


@dataclass(frozen=True, slots=True)
class Times:
    """How long one image takes on a device, in milliseconds: each network's time with a number of cores, and the time
    to load a program that is not resident. `switch_dps`: the same with data-path switching, which keeps the host's
    buffers; published figures for switches range from 100 to 200."""

    text_encoder: tuple[float, int] = (8.0, 1)
    unet: tuple[float, int] = (60.7, 12)  # one iteration, both guidance halves
    vae_decoder: tuple[float, int] = (56.0, 12)
    vae_encoder: tuple[float, int] = (25.0, 12)
    switch: float = 150.0
    switch_dps: float = 100.0

    def run(self, network: str, cores: int) -> float:
        """One run of a network for one image."""
        milliseconds, measured = getattr(self, network)
        return float(milliseconds * measured / cores)

    def work(self, network: str, steps: int) -> float:
        """What a network does for one image, in core-milliseconds."""
        return self.run(network, 1) * (steps if network == UNET else 1)


PUBLISHED = Times()


def read_times(text: str) -> Times:
    """The table with its entries replaced: `unet=48.5x14,vae_decoder=60x14,switch=120`; a network's cores follow the
    x. Raises SettingsError."""
    changes: dict[str, tuple[float, int] | float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        found = FORM.fullmatch(value)
        if (
            name not in Times.__slots__
            or not found
            or (name in (*NETWORKS, VAE_ENCODER)) != bool(found[2])
            or _is_nothing(found)
        ):
            raise SettingsError(
                f"PRESSWORK_AI100_TIMES has {part!r}; it must be milliseconds such as unet=48.5x14,switch=120, the"
                f" number of cores after the x, of {', '.join(Times.__slots__)}."
            )
        changes[name] = (float(found[1]), int(found[2])) if found[2] else float(found[1])
    return replace(PUBLISHED, **changes)  # type: ignore[arg-type]


def _is_nothing(found: re.Match[str]) -> bool:
    """A network takes some time on some core; a switch may take none."""
    return bool(found[2]) and (not float(found[1]) or not int(found[2]))
