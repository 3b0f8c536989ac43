"""The networks on the devices of a plan, as the loop in `diffusion.py` takes them.

A program runs for a fixed number of images, the pass; a batch takes as many passes as it needs, whose last one is
filled by repeating a row. In every result a row depends only on the same row of the inputs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from services.core.model.specs import Shape
from worker.pipeline import versions
from worker.pipelines.ai100.cards import TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER
from worker.pipelines.ai100.programs import Programs, Target
from worker.pipelines.ai100.session import Array, Run
from worker.pipelines.ai100.station import Station, switch_all
from worker.pipelines.cpu import thread_count
from worker.pipelines.diffusion import ShapeKey, shape_key


class Ai100Backend:
    """One model on the devices of a plan."""

    name = "cloud-ai-100"
    precision = "fp16"
    steps_in_flight = 0
    warmup_runs = 0

    def __init__(self, programs: Programs, target: Target, stations: Sequence[Station], latent_channels: int) -> None:
        self.stations, self.programs, self.latent_channels = tuple(stations), programs, latent_channels
        self.card = target.card
        numbers = ",".join(str(station.device.number) for station in stations)
        self.device = f"{target.card.name} {numbers} (SDK {target.sdk_version})"
        cores = "-".join(str(self.having(network)[0].cores(network)) for network in (TEXT_ENCODER, UNET, VAE_DECODER))
        self.device_kind = f"{target.card.name}, SDK {target.sdk_version}, cores {cores}, {programs.batch} a pass"
        if target.overrides or target.hardware != "ai100":
            decides = json.dumps([target.hardware, sorted(target.overrides.items())])
            self.device_kind += f", {target.hardware} flags {hashlib.sha256(decides.encode()).hexdigest()[:8]}"
        if compilers := "+".join(filter(None, sorted(programs.compilers))):
            self.device_kind += f", compiler {compilers}"
        self.versions = f"{versions('torch', 'onnxscript', 'diffusers')}, qaic {target.sdk_version}"
        self._cache: dict[ShapeKey, Ai100Compiled] = {}
        self._host_decoder: tuple[Path, Any] | None = None

    def having(self, network: str) -> tuple[Station, ...]:
        """The devices that hold the network."""
        return tuple(station for station in self.stations if station.has(network))

    def compiled(self, shape: Shape, batch: int) -> "Ai100Compiled":
        key = shape_key(shape, batch)
        if key not in self._cache:
            self._cache[key] = Ai100Compiled(self, shape)
        return self._cache[key]

    def forget(self, shape: Shape, batch: int) -> None:
        self._cache.pop(shape_key(shape, batch), None)
        if not any(key[:2] == (shape.width, shape.height) for key in self._cache):
            for station in self.stations:
                station.forget((shape.width, shape.height))

    def host_decoder(self, file: Path) -> Any:
        """A graph of the decoder, on the host. The last one is kept, and no other, since each holds its weights."""
        from worker.pipelines.onnxruntime_graphs import Graph

        if self._host_decoder is None or self._host_decoder[0] != file:
            self._host_decoder = None  # first: there is memory for one
            self._host_decoder = file, Graph(file, "fp32", thread_count())
        return self._host_decoder[1]

    def memory(self) -> tuple[int, int] | None:
        """Of all devices together; None if one of them does not tell."""
        try:
            free, total = zip(*(station.device.free()[1:] for station in self.stations), strict=True)
        except SettingsError:
            return None
        return sum(total) - sum(free), sum(total)

    def close(self) -> None:
        for station in self.stations:
            station.close()
        self._cache.clear()
        self._host_decoder = None


class Ai100Compiled:
    """The networks for one shape. Every program is loaded on each device that holds it."""

    def __init__(self, backend: Ai100Backend, shape: Shape) -> None:
        self.size, self._backend = (shape.width, shape.height), backend
        self._exported = backend.programs.exported(self.size)
        self.batch, self._chunks = backend.programs.batch, shape.prompt_chunks
        # Input pictures, which are kept so that their ids stay theirs, with their latents' means and deviations.
        self._encoded: dict[int, tuple[Array, tuple[Array, Array]]] = {}
        # Without guidance, the rows of the other half are images too.
        self.images_a_pass = self.batch if shape.guided else 2 * self.batch
        for network in (TEXT_ENCODER, UNET, VAE_DECODER):
            for station in backend.having(network):
                station.session(network, self.size, self._chunks if network == UNET else 1)

    def to_device(self, values: NDArray[np.float32]) -> Array:
        return np.ascontiguousarray(values)

    def encode_text(self, tokens: NDArray[np.int64]) -> list[Array]:
        """From (rows, tokens) to text states (rows, tokens, channels), the only array of a text here."""
        return [np.concatenate(list(self._in_passes(TEXT_ENCODER, "input_ids", "text_states", tokens)))]

    def concat_halves(self, uncond: list[Array], text: list[Array]) -> list[Array]:
        return [np.concatenate([np.broadcast_to(uncond[0], text[0].shape), text[0]])]

    def concat_chunks(self, chunks: list[list[Array]]) -> list[Array]:
        return [np.concatenate([states for (states,) in chunks], axis=1)]

    def encode_inputs(self, inputs: Sequence[NDArray[np.uint8]]) -> tuple[Array, Array]:
        """Pictures of the call before are not encoded again: a batch's are encoded at once, since a switch to their
        encoder takes time, and then asked for part by part."""
        if any(id(one) not in self._encoded for one in inputs):
            self._encoded = {
                id(one): (one, self._encode_input(one)) for one in {id(one): one for one in inputs}.values()
            }
        found = [self._encoded[id(one)][1] for one in inputs]
        mean, deviation = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return mean, deviation

    def forget_inputs(self) -> None:
        self._encoded.clear()

    def _encode_input(self, pixels: NDArray[np.uint8]) -> tuple[Array, Array]:
        station = self._backend.having(VAE_ENCODER)[0]
        image = pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1.0)
        run = station.submit(station.session(VAE_ENCODER, self.size), {"image": image})
        return self._exported.latent_scale.of_moments(run.wait()["moments"].astype(np.float32))

    def time_table(self, timesteps: Sequence[int]) -> Sequence[int]:
        return timesteps

    def denoise(self, latents: Array, time: int, text: list[Array]) -> Array:
        """One pass after the other, on the first device."""
        station, found = self._backend.having(UNET)[0], []
        for rows in self.passes(len(latents)):
            states = self.states(station, text[0], rows, len(latents))
            found.append(self.rows_of(self.start(station, latents[rows], time, states), rows))
        halves = [
            np.concatenate(half)
            for half in zip(*(np.split(one, len(text[0]) // len(latents)) for one in found), strict=True)
        ]
        return np.concatenate(halves)

    def step_done(self) -> Callable[[], object]:
        return lambda: None

    def decode(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        return self.decoded(latents, self.start_decoding(self._backend.having(VAE_DECODER)[0], latents))

    def decode_exactly(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
        """On the host, in float32: the device's numbers end at 65,504."""
        decoder = self._backend.host_decoder(self._exported.path(self._exported.graph(VAE_DECODER, self.batch)))
        scale = self._exported.latent_scale
        images = [
            decoder.run({"latents": scale.for_decoder(_filled(row, self.batch))})[0][:1]
            for row in np.split(latents, len(latents))
        ]
        return _finished(np.concatenate(images), _is_finite(latents))

    def passes(self, images: int) -> list[slice]:
        """The rows of each pass of the U-Net."""
        return [slice(low, min(low + self.images_a_pass, images)) for low in range(0, images, self.images_a_pass)]

    def states(self, station: Station, text: Array, rows: slice, images: int) -> Any:
        """The text states of a pass, as the device takes them: they are the same at every step. `text` has `images`
        rows, or twice as many, of which the first half is uncond."""
        halves = [_filled(half[rows], self.images_a_pass) for half in np.split(text, len(text) // images)]
        return self._unet(station).buffer("text_states", np.concatenate(halves))

    def start(self, station: Station, latents: Array, timestep: int, states: Any) -> Run:
        """Starts the U-Net for the images of one pass."""
        filled = _filled(latents, self.images_a_pass)
        both = np.concatenate([filled] * (2 * self.batch // self.images_a_pass))
        time = np.full(len(both), timestep, np.float32)
        return station.submit(self._unet(station), {"latents": both, "timestep": time, "text_states": states})

    def rows_of(self, run: Run, rows: slice) -> Array:
        """The prediction, float32, without what filled the pass up: uncond first, if there are halves."""
        found = run.wait()["noise_pred"].astype(np.float32)
        images = rows.stop - rows.start
        return np.concatenate([half[:images] for half in np.split(found, len(found) // self.images_a_pass)])

    def start_decoding(self, station: Station, latents: Array) -> list[Run]:
        """The decoder gets zeros for latents that are not finite."""
        sound = np.where(_is_finite(latents)[:, None, None, None], latents, np.float32(0.0))
        scaled = self._exported.latent_scale.for_decoder(sound)
        session = station.session(VAE_DECODER, self.size)
        return [
            station.submit(session, {"latents": _filled(scaled[low : low + self.batch], self.batch)})
            for low in range(0, len(scaled), self.batch)
        ]

    def decoded(self, latents: Array, runs: Sequence[Run]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        images = np.concatenate([run.wait()["image"] for run in runs])[: len(latents)]
        return _finished(images, _is_finite(latents))

    def switch_to(self, network: str, stations: Sequence[Station]) -> None:
        """Makes a network's program resident on all of these devices."""
        chunks = self._chunks if network == UNET else 1
        switch_all((station, station.session(network, self.size, chunks)) for station in stations)

    def _unet(self, station: Station) -> Any:
        return station.session(UNET, self.size, self._chunks)

    def _in_passes(self, network: str, taken: str, given: str, rows: Array) -> Iterator[Array]:
        """Every row through a network, on all devices that hold it."""
        stations, runs = self._backend.having(network), []
        self.switch_to(network, stations[: -(-len(rows) // self.batch)])
        for number, low in enumerate(range(0, len(rows), self.batch)):
            station = stations[number % len(stations)]
            filled = _filled(rows[low : low + self.batch], self.batch)
            runs.append(station.submit(station.session(network, self.size), {taken: filled}))
        for number, run in enumerate(runs):
            yield run.wait()[given][: len(rows) - number * self.batch].astype(np.float32)


def _filled(rows: Array, count: int) -> Array:
    """With the last row repeated until there are `count`."""
    missing = count - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def _is_finite(values: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


def _finished(images: Array, finite: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """From (batch, 3, height, width) in about -1 to 1 to pixels (batch, height, width, 3), zeros if not finite."""
    whole = np.asarray(finite & _is_finite(images))
    sound = np.where(whole[:, None, None, None], images, 0.0).astype(np.float32)
    pixels = (sound * np.float32(127.5) + np.float32(127.5)).clip(0.0, 255.0).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), whole
