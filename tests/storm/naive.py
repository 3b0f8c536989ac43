"""What two naive workers have in common: how they draw, store and record an image, beside a table of their own.

They are as careful as such programs are: each step is tried again until it succeeds, and an image that is done is
recorded once. What they lack is a fence: whoever draws an image writes it over what is there. With NAIVE_CONDITIONAL,
an object is written only where there is none (`If-None-Match: *`), and else the first writer's is recorded: all that
Presswork has beyond them in this place.
"""

import hashlib
import os
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

import boto3
import psycopg
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image as Picture

from services.core.model.specs import Shape, Spec
from services.core.settings import Settings
from worker.pipeline import Batch
from worker.pipelines.simulated import SimulatedPipeline

TABLES = """
CREATE TABLE naive (id int PRIMARY KEY, state text NOT NULL DEFAULT 'queued', pid int, until timestamptz, sha256 bytea);
CREATE INDEX ON naive (id) WHERE state <> 'done';
CREATE TABLE naive_drawn (id int NOT NULL, sha256 bytea NOT NULL);
"""
T = TypeVar("T")


class Painter:
    """One process's connections and its device."""

    def __init__(self) -> None:
        self._settings = Settings.read()
        self._pipeline = SimulatedPipeline(self._settings)
        self._conditional = bool(os.environ.get("NAIVE_CONDITIONAL"))
        self._store = store(self._settings)
        self._database: psycopg.Connection | None = None

    def start(self, number: int) -> None:
        self.ask(
            "UPDATE naive SET state = 'rendering', pid = %s WHERE id = %s AND state <> 'done'", os.getpid(), number
        )

    def draw(self, number: int) -> bytes:
        """A JPEG file."""
        revision = self._pipeline.card.revision
        spec = Spec(revision, f"a mug {number}", "", number, 64, 64, 10, 7.5)
        batch = Batch(Shape(revision, 64, 64, 10, guided=True), (spec,), 1)
        (picture,) = self._pipeline.render(batch, lambda _: None)
        file = BytesIO()
        Picture.fromarray(picture.pixels).save(file, format="JPEG", quality=90)
        return file.getvalue()

    def keep(self, number: int, data: bytes) -> None:
        """Stores the file and records it."""
        sha256 = hashlib.sha256(patiently(lambda: self._put(key(self._settings, number), data))).digest()
        self.ask("INSERT INTO naive_drawn VALUES (%s, %s)", number, sha256)
        self.ask("UPDATE naive SET state = 'done', sha256 = %s WHERE id = %s AND state <> 'done'", sha256, number)

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return patiently(lambda: self._ask(statement, values))

    def _ask(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        if self._database is None or self._database.closed:
            url = os.environ["DATABASE_URL"].replace("+psycopg", "")
            self._database = psycopg.connect(url, autocommit=True, connect_timeout=5)
        cursor = self._database.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def _put(self, name: str, data: bytes) -> bytes:
        """The bytes that the object has then."""
        told = {"IfNoneMatch": "*"} if self._conditional else {}
        try:
            self._store.put_object(Bucket=self._settings.bucket, Key=name, Body=data, **told)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            return bytes(self._store.get_object(Bucket=self._settings.bucket, Key=name)["Body"].read())
        return data


def store(settings: Settings) -> Any:
    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1})
    return boto3.client(
        "s3", endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region, config=config,
        aws_access_key_id=settings.s3_access_key, aws_secret_access_key=settings.s3_secret_key,
    )  # fmt: skip


def key(settings: Settings, number: int) -> str:
    return f"{settings.prefix}naive/{number}.jpg"


def patiently(attempt: Callable[[], T]) -> T:
    """Its result, as soon as the server that it needs has one."""
    while True:
        try:
            return attempt()
        except (psycopg.Error, BotoCoreError, ClientError):
            time.sleep(0.2)
