"""A batch in parts, whose stages overlap wherever the placement lets them: while one part is denoised, the one before
is decoded, and several devices denoise at once. The last parts are decoded beside the next batch.

One thread does it all: the devices work while it waits. A part is what the U-Net renders in one pass, and takes the
same operations in the same order as it would alone.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.pipeline import OnStep
from worker.pipelines.ai100.cards import UNET, VAE_DECODER
from worker.pipelines.ai100.networks import Ai100Compiled
from worker.pipelines.ai100.session import Array, Run
from worker.pipelines.ai100.station import Station

Loop = Generator[tuple[Array, Any], Array, Array]
"""A part's solver: gives the latents and the time of each step, takes the prediction, returns the last latents."""


@dataclass(slots=True)
class Lane:
    """A place where one part is denoised: a device has two if nothing is decoded meanwhile, so that it need not wait
    for the host's part of a step."""

    station: Station
    part: int = 0
    loop: Loop | None = None
    run: Run | None = None
    states: Any = None


@dataclass(slots=True)
class Overlap:
    """One batch on its way. `begin` gives the solver of some rows."""

    compiled: Ai100Compiled
    lanes: Sequence[Lane]
    decoders: Sequence[Station]
    parts: Sequence[slice]
    text: Array
    begin: Callable[[slice], Loop]
    on_step: OnStep
    latents: dict[int, Array] = field(default_factory=dict)
    decoding: dict[int, list[Run]] = field(default_factory=dict)
    _places: dict[int, Station] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    _done: int = 0

    def start(self) -> None:
        """Denoises all parts, and starts decoding them. What `on_step` raises passes through as soon as the runs in
        flight have ended."""
        self._waiting.extend(range(len(self.parts)))
        try:
            self.compiled.switch_to(UNET, _each(lane.station for lane in self.lanes))
            for lane in self.lanes:
                self._next_part(lane)
            beside = (self._decoder_of(part) for part in self._places)
            self.compiled.switch_to(VAE_DECODER, _each(one for one in beside if not _take_turns(one)))
            while any(lane.run for lane in self.lanes):
                for lane in self.lanes:
                    if lane.run is not None:
                        self._step(lane, lane.run)
            left = [part for part in range(len(self.parts)) if part not in self.decoding]
            self.compiled.switch_to(VAE_DECODER, _each(map(self._decoder_of, left)))
            for part in left:
                self._decode(part)
        except BaseException:
            self.settle()
            raise

    @property
    def ready(self) -> bool:
        """Whether the decoders have ended, or have been asked for more since: then waiting holds nothing up."""
        return all(
            runs[-1].ended or self._decoder_of(part).turns(VAE_DECODER).is_behind(runs[-1])
            for part, runs in self.decoding.items()
            if not any(self._decoder_of(later) is self._decoder_of(part) for later in self.decoding if later > part)
        )

    def finish(self) -> tuple[Array, NDArray[np.uint8], NDArray[np.bool_]]:
        """Latents, pixels, and which images are finite, all parts in order. Waits until they are decoded."""
        try:
            found = [self.compiled.decoded(self.latents[n], self.decoding[n]) for n in range(len(self.parts))]
        finally:
            self.settle()
        pixels, finite = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return np.concatenate([self.latents[n] for n in range(len(self.parts))]), pixels, finite

    def _next_part(self, lane: Lane) -> None:
        lane.run = lane.loop = lane.states = None
        if not self._waiting:
            return
        lane.part = self._waiting.popleft()
        self._places[lane.part] = lane.station
        rows, images = self.parts[lane.part], self.parts[-1].stop
        lane.states = self.compiled.states(lane.station, self.text, rows, images)
        lane.loop = self.begin(rows)
        self._start(lane, *next(lane.loop))

    def _start(self, lane: Lane, latents: Array, time: Any) -> None:
        lane.run = self.compiled.start(lane.station, latents, time, lane.states)

    def _step(self, lane: Lane, run: Run) -> None:
        """Takes a step's prediction, starts the next one and reports."""
        assert lane.loop is not None
        noise_pred = self.compiled.rows_of(run, self.parts[lane.part])
        try:
            self._start(lane, *lane.loop.send(noise_pred))
        except StopIteration as end:
            self.latents[lane.part] = end.value
            if not _take_turns(lane.station):
                self._decode(lane.part)
            self._next_part(lane)
        self._done += 1
        self.on_step(self._done // len(self.parts))  # as many steps as the whole batch has come

    def _decode(self, part: int) -> None:
        self.decoding[part] = self.compiled.start_decoding(self._decoder_of(part), self.latents[part])

    def _decoder_of(self, part: int) -> Station:
        """The device that denoised it if that one decodes, or else one that does."""
        station = self._places[part]
        return station if station.has(VAE_DECODER) else self.decoders[part % len(self.decoders)]

    def settle(self) -> None:
        """Nothing is in flight afterwards, whatever was raised."""
        for lane in self.lanes:
            if lane.run is not None:
                lane.run.settle()
            if lane.loop is not None:
                lane.loop.close()
        for runs in self.decoding.values():
            for run in runs:
                run.settle()


def _each(stations: Iterable[Station]) -> list[Station]:
    return list(dict.fromkeys(stations))


def lanes(stations: Sequence[Station], parts: int) -> list[Lane]:
    """As many as there are parts, at most."""
    found = [Lane(station) for station in stations]
    found += [Lane(station) for station in stations if _take_turns(station)]
    return found[:parts]


def _take_turns(station: Station) -> bool:
    """Whether nothing can be decoded while the device denoises: then a batch is decoded after the last part."""
    return station.has(UNET) and station.has(VAE_DECODER) and station.placement.share(UNET, VAE_DECODER)
