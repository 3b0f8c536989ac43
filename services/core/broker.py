"""Celery on Redis, as Presswork uses it: the application, and a transport that takes what it reads for a wake-up.

Messages are JSON and acknowledged early; Celery's results, countdowns and retries are not used. A wake-up is only a
hint, so its content is never read: whatever arrives on a model's queue means "look for work", and nothing that is in it
can set a time limit, load a pickle or exhaust the parser.
"""

import json
import uuid
from base64 import b64encode
from queue import Empty
from typing import Any

import kombu
import kombu.transport
import kombu.transport.redis
import redis
from celery import Celery
from celery.loaders.app import AppLoader
from kombu import Queue
from kombu.utils.json import dumps

from services.core.model.addresses import RedisAddress

TASK = "presswork.render"
EXPIRY_MILLISECONDS = 60_000
_TRANSPORT = "presswork-redis"
_TRANSPORT_OPTIONS = {
    "ack_emulation": False,
    "priority_steps": [0],
    "socket_connect_timeout": 2.0,
    "socket_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 5,
    "retry_on_timeout": False,
}


def queue_name(model: str) -> str:
    return f"presswork.{model}"


def celery_app(redis_url: str, model: str | None = None) -> Celery:
    """The application. With `model`, its workers consume that model's wake-ups."""
    app = _App(RedisAddress.parse(redis_url))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_proc_alive_timeout=1800.0,  # before the child reports that it is up, it loads a model and may compile it
    )
    if model is not None:
        app.conf.task_queues = [Queue(queue_name(model))]
        app.conf.task_default_queue = queue_name(model)
    return app


def send(app: Celery, model: str) -> None:
    """Sends one wake-up. Raises what Redis, its driver and Kombu raise."""
    queue = queue_name(model)
    app.send_task(TASK, args=[model], queue=queue, declare=[], retry=False, ignore_result=True)


def redis_client(redis_url: str, *, answer_seconds: float = 2.0) -> "redis.Redis":
    address = RedisAddress.parse(redis_url)
    return redis.Redis(
        address.host,
        address.port,
        address.db,
        username=address.username,
        password=address.password,
        socket_connect_timeout=answer_seconds,
        socket_timeout=answer_seconds,
        ssl=address.tls is not None,
        **(address.tls or {}),  # type: ignore[arg-type]
    )


class _Loader(AppLoader):
    """Reads no configuration module: CELERY_CONFIG_MODULE could name one of another application."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002
        return {}


class _App(Celery):
    """Connects where the settings say. Celery itself prefers CELERY_BROKER_URL and its kin."""

    backend_cls = "disabled"

    def __init__(self, address: RedisAddress) -> None:
        super().__init__("presswork", loader=_Loader)
        self._address = address

    def connection_for_read(self, *_: Any, **__: Any) -> kombu.Connection:
        address = self._address
        return kombu.Connection(
            address.host,
            address.username,
            address.password,
            str(address.db),
            address.port,
            ssl=address.tls or False,
            transport=_TRANSPORT,
            transport_options=_TRANSPORT_OPTIONS,
            connect_timeout=2.0,
        )

    connection_for_write = connection_for_read


class WakeUpChannel(kombu.transport.redis.Channel):
    """A queue is a list of at most one message, which expires: a model that nobody serves collects no wake-ups."""

    do_restore = False  # a wake-up that was not taken to the end is not worth sending again

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            pipe.lpush(queue, dumps(message)).ltrim(queue, 0, 0).pexpire(queue, EXPIRY_MILLISECONDS).execute()

    def _queue_bind(self, *_: Any) -> None:
        """Stores no binding: messages are sent to the queue by its name."""

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        try:
            answer = self.client.parse_response(connection, "BRPOP", **options)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
        if not answer:
            raise Empty
        for queue in self.active_queues:
            self.connection._deliver(_wake_up(queue), queue)  # noqa: SLF001  as Kombu's own channels do
        return True


class WakeUpTransport(kombu.transport.redis.Transport):
    """Any error is a lost connection: whatever Redis answers but the right thing, the consumer connects anew later."""

    Channel = WakeUpChannel
    connection_errors = (Exception,)


kombu.transport.TRANSPORT_ALIASES[_TRANSPORT] = f"{__name__}:WakeUpTransport"


def _wake_up(queue: str) -> dict[str, Any]:
    """A message as Celery sends it."""
    number = str(uuid.uuid4())
    return {
        "body": b64encode(json.dumps([[queue], {}, {}]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TASK, "id": number, "root_id": number},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": number,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": number,
        },
    }
