"""Crash points: the named places where a program stands between two effects, and may end.

An effect is what others can see: a commit in Postgres, a PUT or DELETE in the store, a message to Redis, a reply to a
client. `crash_point("image.stored")` does nothing, unless that point was armed in this process, which only tests do: by
`arm`, or with the variable PRESSWORK_CRASH_POINT for a program that they start, such as `image.stored:kill:3`. A unit
test compares this list with the calls.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)
VARIABLE = "PRESSWORK_CRASH_POINT"
ACTIONS = ("kill", "stop", "error", "delay")
DELAY_SECONDS = 0.4

# Each: which two effects it separates; what holds when the program ends there.
POINTS: Mapping[str, str] = {
    # Web servers
    "submit.copying": "Two pieces of a large COPY; nothing of the job or chunk is there, and the key is free.",
    "submit.recorded": "All rows of a job and their commit; nothing of the job is there, and the key is free.",
    "submit.committed": "A job's commit and its wake-up; the key finds the job, and workers find it on their timers.",
    "submit.woken": "A job's wake-up and the reply; the same key gets the same job.",
    "input.stored": "A data URL's object and its row; an object that nothing names, and no job.",
    "chunk.committed": "A chunk's commit and the reply; the same number gets the same chunk.",
    "draft.finalized": "A draft's opening and its wake-up; finalizing again answers the same job.",
    "image.submitted": "An image's job and its wake-up; the same key gets the same job.",
    "file.stored": "A file's object and its row; an object that nothing names, and the key is free.",
    "file.committed": "A file's row and the reply; the same key gets the same file.",
    "part.stored": "A part's object and its row; the part is sent again and counts once.",
    "part.recorded": "A part's row and the reply; sent again it counts once.",
    "upload.joined": "The joined object and the file's row; the upload stays open, and is completed again.",
    "upload.completed": "A file's row and the reply; completing again answers the same file.",
    "batch.created": "A batch's commit and the reply; the same key gets the same batch.",
    "batch.cancelled": "A batch's cancellation and that of its images; no image of it is claimed or becomes done.",
    "cancel.committed": "A job's cancellation and that of its images; no image of it is claimed or becomes done.",
    "retry.committed": "A retry's commit and its wake-up; the same key gets the same retry.",
    "pause.committed": "The end of a job's pause and its wake-up; workers find the job on their timers.",
    "redraw.committed": "A redraw's commit and its wake-up; the same key gets the same job.",
    "bulk.asked": "A bulk act's commit and the reply; the same key gets the same act.",
    "export.ordered": "An export's commit and the reply; the same key gets the same export.",
    "run.begun": "The commit of a catalogue's run and the reply; the same key gets the same run.",
    "schedule.asked": "The commit of a schedule's run and the reply; the same key gets the same run.",
    "delete.committed": "A job's deletion and the reply; it is gone for readers, and its space is freed.",
    # Who wakes workers
    "wake-up.marked": "The mark of a wake-up in Redis and its message; workers find the job on their timers.",
    # Workers
    "claim.committed": "A claim's commit and its first heartbeat; its images are queued again after the lease.",
    "claim.started": "A job's start and the first batch; the claim's images are queued again after the lease.",
    "image.copied": "A copied object and its settlement; the next worker copies or adopts it.",
    "batch.rendered": "Two batches of a claim; nothing of the claim is settled, and all of it is queued again.",
    "object.encoded": "A rendered picture and its PUT; those before it are adopted by the next worker.",
    "image.stored": "An image's PUT and its settlement; the next worker adopts the object.",
    "shard.stored": "A shard's PUT and its settlement; an orphan, and the next worker's shard is another one.",
    "settle.recorded": "A settlement's rows and their commit; the claim is open as before.",
    "settle.committed": "A settlement's commit and the next claim; the images are done and settled once.",
    "settle.dropping": "The settlement of cancelled images and the DELETE of their objects; nothing names these.",
    "heartbeat.extended": "A lease's extension and the worker's knowledge of it; the lease ends as usual.",
    # Schedulers
    "lead.taken": "The lead and the first periodic task; another scheduler leads after the lease.",
    "task.committed": "Two periodic tasks; each is repeated by the next leader.",
    "lease.taken": "A background task's lease and its work; another scheduler does it after the lease.",
    "lease.committed": "A commit of a background task and its next effect; another scheduler goes on from there.",
    "work.done": "The last effect of a background task and the end of its lease; doing it again changes nothing.",
    "batch.validated": "A batch file's job and its wake-up; workers find the job on their timers.",
    "output.stored": "A batch's output object and the job's end; the same bytes are written again.",
    "export.stored": "Objects of an export and their rows; the same shard is written again.",
    "export.listed": "An export's manifest and its completion; the manifest is written again.",
    "export.dropped": "The DELETE of an export's objects and that of its rows; the next one finds nothing to drop.",
    "dataset.stored": "Objects of a dataset's shard and their rows; the same shard is written again.",
    "dataset.listed": "A dataset's card and the version's completion; the card is written again.",
    "dataset.dropped": "The DELETE of a dataset's objects and that of their rows; the next one drops the rows.",
    "dataset.shrunk": "The DELETE of what only a deleted version had and that of the rows; they are dropped again.",
    "deletion.dropped": "The DELETE of images' objects and that of their rows; the next one drops them again.",
    "deletion.emptied": "The DELETE of a job's last objects and that of the job; the next one deletes the job.",
    "tenant.emptied": "The end of a tenant's jobs and the DELETE of all else; the next one goes on with that.",
    "tenant.dropped": "The DELETE of a tenant's objects and that of the tenant; the next one finds none.",
    "upload.dropped": "The DELETE of an upload's parts and that of their rows; the next one drops them again.",
    "file.dropped": "The DELETE of a file's object and that of its row; the next one drops it again.",
    "retention.erased": "The end of a job's prompts and the note of it; they are erased again.",
    "retention.begun": "The moment from which objects count as gone and their DELETE; the next one drops them.",
    "retention.dropped": "The DELETE of a job's old objects and the note of it; the next one drops them again.",
    "mark.raised": "The mark's number in the database and its PUT; the store has the one before, which fits too.",
    "mark.stored": "The mark's PUT and the note of it; both have the same number.",
    "orphan.dropped": "The DELETE of orphans and that of their rows; the next one drops them again.",
    "webhook.sent": "A message to a receiver and its record; it is sent again with the same id.",
    "webhook.recorded": "Two messages to a receiver; the second is sent by another scheduler, the first not again.",
    "schedule.cancelled": "The cancellation of earlier runs and the new run's job; one job for each instant.",
    "schedule.submitted": "A run's job and its wake-up; one job for each instant.",
    "catalogue.listed": "A run's list and its plan; the plan is made again and its list written to the same key.",
    "photograph.stored": "A photograph's object and its row; an object that nothing names, and it is fetched again.",
    "catalogue.appended": "A chunk of a run's job and what follows; the chunk is there once.",
    "catalogue.submitted": "A run's job and its wake-up; workers find the job on their timers.",
    "catalogue.copied": "A picture's copy and its entry; it is copied again to the same key.",
    "manifest.stored": "A version's manifests and its publication; they are written again.",
    "version.forgotten": "A version's end and the DELETE of its manifests; the next tidying finds them.",
    "pointer.moved": "The pointer to a version and the note of it; it is moved again.",
    "entry.dropped": "The DELETE of pictures that no version has and that of their rows; they are dropped again.",
    "catalogue.dropped": "The DELETE of a catalogue's objects and that of its rows; the next one drops the rows.",
    "copy.stored": "A picture's copy elsewhere and the note of it; the next one finds it there.",
    "copy.listed": "A manifest elsewhere and the pointer to it; the pointer leads to the one before.",
    "copy.pointed": "The pointer elsewhere and the note of it; it is written again.",
    "copy.going": "The note that copies go and their DELETE; the next one deletes them.",
    "copy.dropped": "The DELETE of copies and that of their rows; the next one finds nothing to delete.",
    "bulk.acted": "A bulk act's commit for one job and its wake-up; each job is acted upon once.",
}


class CrashPointError(Exception):
    """What the action `error` raises. No code expects it."""


class _Armed:
    """One point of this process, and what happens the `hit`-th time that it is reached."""

    def __init__(self, name: str, action: str, hit: int, tell: Callable[[], None] | None) -> None:
        if name not in POINTS or action not in ACTIONS or hit < 1:
            raise ValueError(f"{VARIABLE} must be POINT:ACTION or POINT:ACTION:N, with an action of {ACTIONS}.")
        self._name, self._action, self._left, self._tell = name, action, hit, tell
        self._counting = threading.Lock()

    def reached(self, name: str) -> None:
        if name != self._name:
            return
        with self._counting:
            self._left -= 1
            is_now = self._left == 0
        if is_now:
            self._act()

    def _act(self) -> None:
        log.warning("crash point", extra={"point": self._name, "action": self._action})
        if self._tell is not None:
            self._tell()
        if self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._action == "stop":
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no further
        elif self._action == "delay":
            time.sleep(DELAY_SECONDS)
        else:
            raise CrashPointError(self._name)


_armed: _Armed | None = None


def crash_point(name: str) -> None:
    """Marks a place of the list. It costs one comparison while no point is armed."""
    if _armed is not None:
        _armed.reached(name)


def arm(name: str, action: str, hit: int = 1, tell: Callable[[], None] | None = None) -> None:
    """Lets this process be killed, be stopped, raise or wait the `hit`-th time that it reaches the point, once. `tell`
    is called just before. Raises ValueError."""
    global _armed  # noqa: PLW0603  one for the process
    _armed = _Armed(name, action, hit, tell)


def _arm_as_told(told: str) -> None:
    name, _, rest = told.partition(":")
    action, _, hit = rest.partition(":")
    arm(name, action, int(hit) if hit.isdecimal() else 1 if not hit else 0)


if VARIABLE in os.environ:
    _arm_as_told(os.environ[VARIABLE])
