"""How many of which faults, in a seeded order."""

import random
from collections import Counter
from dataclasses import dataclass, field

# Each kind of fault by name, and how often it strikes in the whole storm. `faults.py` has what each does.
WHOLE = {
    "kill the child of a worker": 800,
    "kill a worker": 170,
    "kill the web server": 15,
    "kill the scheduler": 15,
    "stop a child beyond its lease": 150,
    "wipe Redis": 20,
    "kill Redis": 15,
    "Redis refuses": 15,
    "crash Postgres": 20,
    "kill the object store": 10,
    "the object store hangs": 10,
    "cut a host off": 30,
    "fill the disk": 10,
    "kill the supervisor": 10,
    "cut the power": 5,
}
IMAGES = 50_000
FENCED = 50  # settlements of stopped workers that the whole storm must see refused


@dataclass(frozen=True)
class Plan:
    """One storm. `share` of the whole one, with each kind of fault at least once."""

    seed: int
    share: float = 1.0
    left_out: tuple[str, ...] = ()  # kinds that this machine does not let anyone inject
    counts: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        counts = {kind: max(1, round(n * self.share)) for kind, n in WHOLE.items() if kind not in self.left_out}
        object.__setattr__(self, "counts", Counter(counts))

    @property
    def images(self) -> int:
        return round(IMAGES * self.share)

    @property
    def fenced(self) -> int:
        return max(1, round(FENCED * self.share))

    @property
    def faults(self) -> list[str]:
        """In the order in which they strike."""
        faults = list(self.counts.elements())
        random.Random(self.seed).shuffle(faults)
        return faults
