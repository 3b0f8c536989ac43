"""Who submits and who looks, while the storm goes on: both ask again until they are answered."""

import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import httpx

SPECS = 200  # different pictures; each is drawn many times
BAD = {"prompt": "fault:nan", "size": "64x64", "seed": 0}
PATIENCE_SECONDS = 180.0
FINAL = ("done", "failed", "cancelled")


def requests(images: int) -> list[dict[str, Any]]:
    """So many images, of which the last is a prompt that fails."""
    return [*(spec(number) for number in range(images - 1)), BAD]


def spec(number: int) -> dict[str, Any]:
    return {"prompt": f"a mug {number % SPECS}", "size": "64x64", "seed": number % SPECS, "output_format": "jpeg"}


class Submitter:
    """Submits for one tenant. The same key until it is answered, however often that takes."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)
        self._key = key[:10]
        self._numbers = 0
        self.tries = 0

    def submit(self, images: Sequence[dict[str, Any]], **head: str) -> str:
        """The job's id."""
        self._numbers += 1
        named = {"Idempotency-Key": f"{self._key}-{self._numbers}"}
        answer = self._patiently("POST", "/v1/jobs", json={"images": images, **head}, headers=named)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self._patiently("GET", f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _patiently(self, verb: str, path: str, **more: Any) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert time.monotonic() < deadline, f"{verb} {path} is not answered"
            self.tries += 1
            try:
                answer = self.http.request(verb, path, **more)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code != 503:
                return answer
            time.sleep(0.2)


class Reader:
    """Polls the jobs one after the other, as a dashboard would, and keeps every read that is wrong."""

    def __init__(self, jobs: Sequence[tuple[Submitter, str]]) -> None:
        self.jobs = list(jobs)
        self.reads = 0
        self.bad: list[object] = []
        self.timeline: list[tuple[float, int]] = []
        self._counts: dict[str, dict[str, int]] = {}
        self._going = True
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()

    @property
    def done(self) -> int:
        """How many images of all jobs are done, by the newest reads."""
        return sum(counts["done"] for counts in list(self._counts.values()))

    def has_fewer(self, images: int) -> bool:
        """Whether fewer images than that wait or are being rendered; False while a job was not read yet."""
        known = list(self._counts.values())
        left = sum(counts["queued"] + counts["rendering"] for counts in known)
        return len(known) == len(self.jobs) and left < images

    def _run(self) -> None:
        while self._going:
            for submitter, job_id in list(self.jobs):
                self._look(submitter, job_id)
            self.timeline.append((round(time.monotonic() - self._began, 1), self.done))
            time.sleep(0.05)

    def _look(self, submitter: Submitter, job_id: str) -> None:
        counts = dict(submitter.job(job_id)["counts"])
        self.reads += 1
        total = counts.pop("total")
        before = self._counts.get(job_id)
        went_back = before is not None and any(counts[state] < before[state] for state in FINAL)
        if sum(counts.values()) != total or min(counts.values()) < 0 or went_back:
            self.bad.append((job_id, total, counts, before))
        self._counts[job_id] = counts
