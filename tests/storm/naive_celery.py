"""A naive worker: a Celery task for each image, set as safely as Celery's documentation says.

A message is acknowledged late and given back when the process dies, one is held at a time, and it is visible again
after a lease as short as the storm's, looked for every second.
"""

import os

from celery import Celery
from celery.signals import worker_process_init

from tests.storm.naive import Painter

LEASE = 2  # seconds
QUEUE = "naive"

app = Celery("naive", broker=os.environ.get("REDIS_URL", ""))
app.conf.update(
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": LEASE,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": LEASE,
    },
    task_acks_late=True,
    task_default_queue=QUEUE,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)
held: dict[str, Painter] = {}


@worker_process_init.connect
def load(**_: object) -> None:
    held["painter"] = Painter()


@app.task(name="naive.render")
def render(number: int) -> None:
    painter = held["painter"]
    painter.start(number)
    painter.keep(number, painter.draw(number))
