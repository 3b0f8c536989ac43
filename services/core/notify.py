"""The Celery application and the wake-ups that it carries: "there is work for this model". A wake-up is only a hint.

Messages are JSON and acknowledged early; Celery's results, countdowns and retries are not used. Nothing here raises if
Redis cannot be reached: workers also look for work on a timer.
"""

import logging
import threading
from queue import Empty
from typing import Any
from urllib.parse import urlsplit

import kombu.transport.redis
import redis
from celery import Celery
from kombu import Queue

log = logging.getLogger(__name__)


class TolerantChannel(kombu.transport.redis.Channel):
    """Drops a malformed message. Without this, it ends Kombu's consumer and with it the Celery worker."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("invalid message dropped", extra={"error": f"{type(error).__name__}: {error}"[:200]})
            raise Empty from None


kombu.transport.redis.Transport.Channel = TolerantChannel
TASK = "presswork.render"
_COALESCE_MILLISECONDS = 2000


def queue_name(model: str) -> str:
    return f"presswork.{model}"


def celery_app(redis_url: str, model: str | None = None) -> Celery:
    """The application. With `model`, its workers consume that model's wake-ups."""
    app = Celery("presswork", broker=redis_url)
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
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2.0,
        broker_transport_options={
            "socket_connect_timeout": 2.0,
            "socket_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "retry_on_timeout": False,
        },
    )
    if model is not None:
        app.conf.task_queues = [Queue(queue_name(model))]
        app.conf.task_default_queue = queue_name(model)
    return app


class Notifier:
    """Wakes the workers of models: at most once in two seconds for each model."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, socket_connect_timeout=2.0, socket_timeout=2.0)
        self._app = celery_app(redis_url)
        self._wanted: dict[str, bool] = {}
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def notify(self, model: str, *, again: bool = False) -> None:
        """Sends a wake-up soon, from a thread of its own; never blocks. `again`: even if one was sent a moment ago."""
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
                self._thread.start()
            self._wanted[model] = again or self._wanted.get(model, False)
            self._wake.notify()

    def notify_now(self, model: str, *, again: bool = False) -> bool:
        """Sends a wake-up before it returns; False if Redis cannot be reached."""
        try:
            fresh = self._redis.set(f"presswork:wake-up:{model}", 1, px=_COALESCE_MILLISECONDS, nx=not again)
            if fresh or again:
                self._app.send_task(TASK, args=[model], queue=queue_name(model), retry=False, ignore_result=True)
        except Exception as error:  # a broken connection raises many types; the workers' timers make up for it
            log.warning("wake-up lost", extra={"model": model, "error": str(error)[:200]})
            return False
        return True

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._wanted:
                    self._wake.wait()
                model, again = self._wanted.popitem()
            self.notify_now(model, again=again)


def redis_answers(redis_url: str) -> bool:
    """Whether the Redis server accepts the password and answers within two seconds."""
    client: Any = redis.Redis.from_url(redis_url, socket_connect_timeout=2.0, socket_timeout=2.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def redis_address(redis_url: str) -> str:
    """Host and port, without the password."""
    parts = urlsplit(redis_url)
    return f"{parts.hostname}:{parts.port or 6379}"
