"""A worker without accelerator and object store: all that it does beside rendering and storing is the real thing.

Its batches are rendered at once, all as one grey picture, and no picture is encoded or uploaded. It claims, forms
batches, beats, settles and does the housekeeping as any worker does, in a process of its own.
"""

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from sqlalchemy import event

from services.core.db.database import Database
from services.core.model.specs import StoredImage
from services.core.settings import Settings
from worker import child, render
from worker.heartbeat import HeldClaim
from worker.outcome import Rendered
from worker.pipeline import Batch, OnStep, Picture
from worker.pipelines.simulated import SimulatedPipeline
from worker.shared_memory import SharedState
from worker.storing import StoringStage

GREY = Picture(np.full((8, 8, 3), 128, np.uint8))


class NullPipeline(SimulatedPipeline):
    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture]:
        on_step(batch.shape.steps_done)
        return [GREY] * batch.size


class NullStoring(StoringStage):
    def _store(self, held: HeldClaim, rendered: Rendered) -> StoredImage:
        image = rendered.image
        key = bytes.fromhex(image.render_key)
        return StoredImage(
            job_id=image.job_id, index=image.index, object_key=f"null/{image.job_id}/{image.index}.png", sha256=key,
            bytes=192, device=self._device, reproducibility_class=rendered.reproducibility_class,
            versions=self._pipeline.versions, truncated=False, flagged=None, unknown_words=(),
            render_seconds=rendered.seconds, render_key=key,
        )  # fmt: skip


class Sent:
    """What a database is sent: statements by name, and round trips."""

    def __init__(self, database: Database) -> None:
        self.statements: dict[str, int] = {}
        self.round_trips = 0
        engine = database._engine  # there is no other place where all statements pass
        event.listen(engine, "before_cursor_execute", self._executes)
        event.listen(engine, "commit", self._commits)

    def _executes(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        name = statement.partition("/* ")[2].partition(" */")[0] or statement[:40]
        self.statements[name] = self.statements.get(name, 0) + 1
        self.round_trips += 1

    def _commits(self, _connection: Any) -> None:
        self.round_trips += 1
        self.statements["commit"] = self.statements.get("commit", 0) + 1


def run(environ: dict[str, str], parent: Connection) -> None:
    """Says that it is ready, waits for the word, renders until the queue is empty, and tells what it sent and used."""
    os.environ.update(environ)
    child.open_pipeline = NullPipeline
    render.StoringStage = NullStoring  # type: ignore[misc]
    worker = child.Child(Settings.read(environ), SharedState())
    worker._leave_if_orphaned = lambda: None  # type: ignore[method-assign]  # it has no Celery parent
    worker._register()  # what `start` does, without its timer, which would begin at once
    worker._housekeeping.start()
    sent = Sent(worker.database)
    parent.send("ready")
    parent.recv()
    claimed = _claims(worker.render_loop)
    began, cpu = time.monotonic(), time.process_time()
    worker.render_loop.run()
    parent.send(
        {
            "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "claims": claimed,
            "statements": sent.statements, "round_trips": sent.round_trips,
        }
    )  # fmt: skip
    parent.recv()
    os._exit(0)


def _claims(loop: render.RenderLoop) -> list[int]:
    """Fills with the sizes of the loop's claims."""
    found: list[int] = []
    hold = loop.heartbeat.hold

    def note(claim: Any) -> HeldClaim:
        found.append(len(claim.images))
        return hold(claim)

    loop.heartbeat.hold = note  # type: ignore[method-assign]
    return found
