"""Describes a model without loading it: its kind, defaults and sampler, and each network's size.

Reads only JSON files and the headers of the weights, so that large models take no longer than small ones.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from worker.model import directory, sampler, weights


def inspect(folder: Path) -> dict[str, Any]:
    """The description as a JSON object. Sizes are [width, height] in pixels; `bytes` are those on disk.

    Raises SettingsError, in one sentence, if the directory is no complete model.
    """
    directory.check(folder)
    index = directory.read_index(folder)
    sampler_config = directory.read_sampler_config(folder)
    return {
        "directory": str(folder),
        "name": index.name,
        "kind": index.kind,
        "revision": directory.revision(folder),
        "sizes": [list(size) for size in index.sizes],
        "default_size": list(index.default_size),
        "default_steps": index.default_steps,
        "default_guidance_scale": index.default_guidance_scale,
        "max_steps": index.max_steps,
        "sampler": {
            "name": sampler.SOLVERS[sampler_config.solver]
            + (", Karras sigmas" if sampler_config.karras_sigmas else ""),
            "squeezed": sampler_config.squeezed,
            "prediction": sampler_config.prediction_type,
            "guidance_rescale": sampler_config.guidance_rescale,
        },
        "license": None if index.license is None else index.license.as_json(),
        "components": {name: _component(folder / name) for name in directory.networks(folder)},
    } | directory.merged(folder)


def table(facts: dict[str, Any]) -> str:
    """The description as text, in lines of at most 80 columns."""
    sampler = facts["sampler"]
    how = [sampler["name"], *(["squeezed"] if sampler["squeezed"] else []), sampler["prediction"]]
    how += [f"rescale {sampler['guidance_rescale']:g}"] if sampler["guidance_rescale"] else []
    sizes = ", ".join(f"{width}x{height}" for width, height in facts["sizes"])
    lines = [
        f"{facts['name']}: a model of {facts['kind']}'s architecture",
        "",
        f"  revision  {facts['revision']}",
        f"  sizes     {sizes} pixels",
        f"  defaults  {facts['default_steps']} steps, guidance {facts['default_guidance_scale']:g}",
        f"  sampler   {', '.join(how)}",
        *([f"  licence   {facts['license']['name']}"] if facts["license"] else []),
        *_merged(facts),
        "",
        f"  {'':<16}{'parameters':>14}{'tensors':>10}{'dtype':>12}{'on disk':>12}",
    ]
    parts = facts["components"]
    for name, part in parts.items():
        lines.append(_row(name, part["parameters"], part["tensors"], "+".join(part["dtypes"]), part["bytes"]))
    totals = (sum(part[key] for part in parts.values()) for key in ("parameters", "tensors", "bytes"))
    parameters, tensors, size = totals
    return "\n".join([*lines, _row("in all", parameters, tensors, "", size)])


def _merged(facts: dict[str, Any]) -> list[str]:
    """What was merged into the model, if anything was."""
    if "merged" not in facts:
        return []
    loras = ", ".join(f"{one['file']} at {one['weight']:g}" for one in facts["merged"]["loras"])
    return [f"  merged    {facts['merged']['base']['name']} with {loras}"]


def _component(folder: Path) -> dict[str, Any]:
    file = weights.find(folder)
    tensors = weights.read_header(file)
    dtypes = Counter(entry.dtype for entry in tensors.values())
    return {
        "file": file.name,
        "parameters": sum(math.prod(entry.shape) for entry in tensors.values()),
        "tensors": len(tensors),
        "dtypes": [dtype for dtype, _ in dtypes.most_common()],
        "bytes": file.stat().st_size,
    }


def _row(name: str, parameters: int, tensors: int, dtype: str, size: int) -> str:
    return f"  {name:<16}{parameters:>14,}{tensors:>10,}{dtype:>12}{_size(size):>12}"


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
