"""A naive worker: a queue in Postgres, claimed with SKIP LOCKED and leases. It loses nothing; but as in the queues that
people use, whoever is late settles by the image's number alone.

A parent starts its child again whenever that has died, as Celery's does.
"""

import os
import subprocess
import sys
import time

from tests.storm.naive import Painter

LEASE = 2.0  # seconds
IMAGES = 4  # of a claim

CLAIM = """
UPDATE naive SET state = 'rendering', pid = %s, until = clock_timestamp() + make_interval(secs => %s)
WHERE id IN (
    SELECT id FROM naive WHERE state = 'queued' OR (state = 'rendering' AND until < clock_timestamp())
    ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
RETURNING id
"""


def work() -> None:
    painter = Painter()
    while True:
        claimed = painter.ask(CLAIM, os.getpid(), LEASE, IMAGES)
        for (number,) in sorted(claimed):
            painter.keep(number, painter.draw(number))
        if not claimed:
            time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        work()
    while True:
        subprocess.run([sys.executable, "-m", "tests.storm.naive_leases", "child"], check=False)
