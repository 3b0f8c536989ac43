"""`presswork top`: every job on one screen that stays up to date, with keys to pause, cancel and prioritize."""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import typer
from rich.live import Live

from presswork_client import Client, Job
from services.cli import keyboard, options, show, top_screen, units
from services.cli.exits import Usage, guarded
from services.cli.profile import connect
from services.cli.top_feed import Feed
from services.cli.top_screen import Chosen

_DRAW_SECONDS = 0.5
_MESSAGE_SECONDS = 6.0
_PRIORITIES = ("low", "normal", "high")


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("top", rich_help_panel=panel)(guarded(top))


def top(profile: options.ProfileName = None) -> None:
    """Watch all jobs on one screen, and pause, cancel or prioritize them by a key.

    Keys: arrows or j and k choose a job, enter opens it, p pauses or resumes it, + and - change its priority, c cancels
    it (and asks first), q quits. Nothing is changed by quitting.
    """
    if not sys.stdout.isatty() or not sys.stdin.isatty():
        raise Usage("`presswork top` needs a terminal; `presswork overview` and `presswork ls` print the same once.")
    with connect(profile) as client:
        feed = Feed(client)
        feed.start()
        signal.signal(signal.SIGTERM, _terminated)
        try:
            with keyboard.keys() as pressed, Live(console=show.out(), screen=True, auto_refresh=False) as live:
                Top(feed, live).run(pressed)
        except KeyboardInterrupt:
            pass  # as q does
        finally:
            feed.stop()


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # through the blocks that give the terminal back


class Top:
    """The loop: draw, wait for a key, act."""

    def __init__(self, feed: Feed, live: Live) -> None:
        self._feed, self._live = feed, live
        self._chosen = Chosen()
        self._verb: Callable[[], None] | None = None  # what the open question is about
        self._message, self._said = "", 0.0
        self._row = 0

    def run(self, pressed: Callable[[float], list[str]]) -> None:
        while True:
            self._draw()
            for key in pressed(_DRAW_SECONDS):
                if not self._take(key):
                    return

    def _draw(self) -> None:
        width, height = self._live.console.size
        self._feed.rows = max(20, height * 4)
        self._scroll(width, height)
        if self._feed.message != self._message:
            self._message, self._said = self._feed.message, time.monotonic()
        elif self._message and time.monotonic() - self._said > _MESSAGE_SECONDS:
            self._message = self._feed.message = ""
        drawn = top_screen.screen(self._feed.view, self._chosen, self._message, width, height)
        self._live.update(drawn, refresh=True)

    def _scroll(self, width: int, height: int) -> None:
        """Keeps the chosen job on the screen: wherever it moves to, or, if it has gone, the one in its row."""
        view = self._feed.view
        ids = [job["id"] for job in view.jobs]
        row = ids.index(self._chosen.job_id) if self._chosen.job_id in ids else min(self._row, len(ids) - 1)
        self._row = max(0, row)
        rows = top_screen.visible_rows(view, width, height)
        first = min(self._chosen.first, self._row, max(0, len(ids) - rows))
        first = max(first, self._row - rows + 1)
        self._chosen = replace(self._chosen, job_id=ids[self._row] if ids else "", first=first)

    def _take(self, key: str) -> bool:
        """Acts on a key. False: it ends."""
        if self._verb is not None:
            verb, self._verb = self._verb, None
            self._chosen = replace(self._chosen, asking="")
            if key in ("y", "Y"):
                verb()
            return key != keyboard.END
        if key in ("q", "Q", keyboard.END):
            return False
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10}
        if key in steps:
            self._move(steps[key])
        elif key == "enter" and self._chosen.job_id:
            self._open(self._chosen.job_id)
        elif key == "escape":
            self._open("")
        elif (job := self._job()) is not None:
            self._act(key, job)
        return True

    def _move(self, step: int) -> None:
        jobs = self._feed.view.jobs
        if jobs and not self._feed.opened:
            row = min(max(self._row + step, 0), len(jobs) - 1)
            self._chosen = replace(self._chosen, job_id=jobs[row]["id"])

    def _open(self, job_id: str) -> None:
        self._feed.opened = job_id
        self._feed.refresh()

    def _job(self) -> Job | None:
        """The job that a key is about: the one that is shown whole, or the chosen one."""
        view = self._feed.view
        return view.opened or next((job for job in view.jobs if job["id"] == self._chosen.job_id), None)

    def _act(self, key: str, job: Job) -> None:
        job_id = job["id"]
        if key == "p" and job["paused"]:
            self._feed.act(f"{job_id} goes on", lambda client: client.resume(job_id))
        elif key == "p":
            self._feed.act(f"{job_id} is paused", lambda client: client.pause(job_id))
        elif key in ("+", "=", "-"):
            place = _PRIORITIES.index(job["priority"]) + (-1 if key == "-" else 1)
            priority = _PRIORITIES[min(max(place, 0), len(_PRIORITIES) - 1)]
            self._feed.act(f"{job_id} has {priority} priority", _changed(job_id, priority))
        elif key == "c":
            left = job["counts"]["queued"] + job["counts"]["rendering"]
            question = f"Cancel {job_id}, with {units.count(left, 'image')} not done? y or n"
            self._chosen = replace(self._chosen, asking=question)
            self._verb = lambda: self._feed.act(f"{job_id} is cancelled", lambda client: client.cancel(job_id))


def _changed(job_id: str, priority: str) -> Callable[[Client], object]:
    return lambda client: client.change(job_id, priority=priority)
