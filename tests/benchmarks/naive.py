"""The naive worker, for comparison: one Celery task per prompt, one after the other, on one device."""

import os
import time
from io import BytesIO

import boto3
import psycopg
from celery import Celery
from celery.signals import worker_process_init
from PIL import Image as Picture

from services.core.model.specs import Shape, Spec
from services.core.settings import Settings
from worker.pipeline import Batch
from worker.pipelines.simulated import SimulatedPipeline

app = Celery("naive", broker=os.environ.get("REDIS_URL", ""))
app.conf.update(task_ignore_result=True, task_default_queue="naive", worker_prefetch_multiplier=1)
held: dict[str, object] = {}
TABLE = "CREATE TABLE naive (id int PRIMARY KEY, state text, key text, render_seconds real, at timestamptz)"


@worker_process_init.connect
def load(**_: object) -> None:
    settings = Settings.read()
    held["settings"] = settings
    held["pipeline"] = SimulatedPipeline(settings)
    held["database"] = psycopg.connect(os.environ["NAIVE_DATABASE_URL"], autocommit=True)
    held["store"] = boto3.client("s3", endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region)


@app.task(name="naive.render")
def render(number: int, prompt: str) -> None:
    database, pipeline = held["database"], held["pipeline"]
    database.execute("UPDATE naive SET state = 'rendering' WHERE id = %s", (number,))
    revision = pipeline.card.revision
    spec = Spec(revision, prompt, "", number, 512, 512, 10, 7.5)
    began = time.monotonic()
    picture = pipeline.render(Batch(Shape(revision, 512, 512, 10, True), (spec,), 1), lambda _: None)[0]
    seconds = time.monotonic() - began
    file = BytesIO()
    Picture.fromarray(picture.pixels).save(file, format="JPEG", quality=90)
    key = f"naive/{number}.jpg"
    held["store"].put_object(Bucket=held["settings"].bucket, Key=key, Body=file.getvalue())
    database.execute("UPDATE naive SET key = %s, render_seconds = %s WHERE id = %s", (key, seconds, number))
    database.execute("UPDATE naive SET state = 'done', at = now() WHERE id = %s", (number,))
