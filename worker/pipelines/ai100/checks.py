"""`presswork ai100 check`: everything that could not be run without a card, in one table beside what it should be."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from services.core.settings import Settings
from worker.model import directory
from worker.pipelines import cloud_ai100
from worker.pipelines.ai100 import measuring, placement
from worker.pipelines.ai100.sdk import Sdk
from worker.pipelines.cloud_ai100 import Ai100Pipeline

Say = Callable[[str], None]


def run(settings: Settings, say: Say) -> int:
    """Prints the table as it grows; 1 if anything failed. A place that fails does not stop those that need it not."""
    failed = 0
    say(f"{'place':<40} {'found':<44} beside")
    for row in rows(settings):
        failed += row.failed
        say(f"{row.place:<40} {row.found:<44} {row.beside}".rstrip())
    say(f"{failed} failed" if failed else "all of it ran")
    return 1 if failed else 0


def rows(settings: Settings) -> Iterator[measuring.Row]:
    sdk, folder = Sdk(settings.ai100_sdk), directory.locate(settings.model_dir)
    settings = replace(settings, sizes=(directory.read_index(folder).default_size,))
    yield from measuring.tried(
        "the SDK's modules", lambda: measuring.Row("the SDK's modules", f"version {sdk.version()}")
    )
    yield from measuring.tried("qaic-util lists devices", lambda: measuring.devices(sdk))
    pipelines: list[Ai100Pipeline] = []

    def opened() -> measuring.Row:
        began = time.monotonic()
        pipelines.append(
            cloud_ai100.open_pipeline(replace(settings, batch_sizes=(measuring.IMAGES, 1), ai100_data_path=False))
        )
        shape = measuring.specs_of(pipelines[0], 1, 10)[0].shape
        pipelines[0].prepare(shape, measuring.IMAGES)
        return measuring.Row(
            "export, compile, validate, load", f"{time.monotonic() - began:.0f} s", pipelines[0].device_kind
        )

    yield from measuring.tried("export, compile, validate, load", opened)
    if not pipelines:
        return
    pipeline = pipelines[0]
    try:
        yield from measuring.tried("the compiler", lambda: measuring.compiled(sdk, pipeline))
        yield from measuring.networks(settings, pipeline)
        yield from measuring.tried(
            "overlap changes no byte", lambda: measuring.same("overlap changes no byte", pipeline)
        )
        yield from measuring.tried("redrawn pictures", lambda: measuring.redrawn(pipeline))
        yield from measuring.tried("a long prompt", lambda: measuring.long_prompt(pipeline))
        yield from measuring.tried("the device computes what the host does", lambda: measuring.near(pipeline))
        bound = placement.bound(*measuring.table(settings, pipeline)) / 1000
        seconds: list[float] = []

        def ours() -> measuring.Row:
            seconds.append(measuring.seconds_an_image(pipeline, measuring.IMAGES, 10))
            return measuring.beside_the_bound(bound, seconds[0])

        yield from measuring.tried("an image", ours)
    finally:
        pipeline.close()
    one, recipe = {"batch_sizes": (1,)}, {"batch_sizes": (1,), "ai100_placement": str(placement.RECIPE)}
    device = settings.device.split(",")[0]  # the first one alone
    for place, options, measure in (
        (
            "programs of several images",
            {"batch_sizes": (4, 1), "ai100_program_batch": measuring.PROGRAM_BATCH},
            measuring.several,
        ),
        ("batches of one image", one | {"ai100_placement": ""}, measuring.one_after_the_other),
        ("published placement, 10 and 16", recipe, measuring.published),
        (
            "data-path switching",
            recipe | {"ai100_data_path": True, "ai100_times": "switch_dps=1,switch=2"},
            measuring.data_path,
        ),
    ):
        chosen = {"ai100_program_batch": 1, "device": device} | options
        yield from measuring.tried(place, partial(_opened, settings, chosen, measure))


def _opened(
    settings: Settings, options: Mapping[str, Any], measure: Callable[[Ai100Pipeline], measuring.Row]
) -> measuring.Row:
    pipeline = cloud_ai100.open_pipeline(replace(settings, **options))
    try:
        return measure(pipeline)
    finally:
        pipeline.close()
