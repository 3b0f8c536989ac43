"""Traces: OpenTelemetry spans from a job's submission to its settlement, sent by OTLP over HTTP.

Off unless PRESSWORK_TRACES_ENDPOINT is set; while it is off, no tracer and no exporter is imported and a span is an
empty block. Whether a trace is sampled is decided where it begins: by the client's traceparent, else by the ratio.
No span holds a prompt, a query or an exception's text. A job keeps the traceparent under which it was submitted, also
while traces are off.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib import metadata
from typing import Any

from services.core import environment
from services.core.model.errors import SettingsError

_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
EXPORT_SECONDS = 5.0
Value = str | int | float | bool
_tracer: Any = None
_given: ContextVar[str | None] = ContextVar("traceparent", default=None)  # by the client of the request at hand


def configure(role: str, endpoint: str, ratio: float) -> None:
    """Begins to send spans to `endpoint`, such as http://collector:4318/v1/traces; "" leaves traces off. Of traces that
    begin here, `ratio` (0 to 1) are sampled. Call it after a fork.

    Raises:
        SettingsError: the extra `traces` is not installed.
    """
    global _tracer  # noqa: PLW0603  one for the process, as its logs are
    if not endpoint:
        return
    environment.forget("OTEL_")
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise SettingsError(
            "PRESSWORK_TRACES_ENDPOINT is set and needs the extra `traces`: pip install 'presswork[traces]'."
        ) from None
    resource = Resource({"service.name": f"presswork-{role}", "service.version": metadata.version("presswork")})
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource)
    session = requests.Session()
    session.trust_env = False  # no proxy and no password of the environment
    exporter = OTLPSpanExporter(endpoint=endpoint, headers={}, timeout=EXPORT_SECONDS, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
    _tracer = provider.get_tracer("presswork")


def is_on() -> bool:
    return _tracer is not None


def take(header: str) -> None:
    """Remembers the traceparent that the request at hand came with, if it is one."""
    _given.set(header if _FORM.fullmatch(header) else None)


def traceparent() -> str | None:
    """The span at hand as W3C Trace Context writes it, or what the request came with; None without either."""
    if _tracer is not None:
        from opentelemetry import trace

        if (context := trace.get_current_span().get_span_context()).is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return _given.get()


def trace_id(parent: str | None) -> str | None:
    """The trace's id, 32 hexadecimal digits, of a traceparent."""
    return None if parent is None else parent[3:35]


def span(name: str, *, kind: str = "internal", parent: str | None = None, **attributes: Value) -> Any:
    """A context manager around what the span is about; it gives the span, or None while traces are off. Without
    `parent`, a traceparent, it is a part of the span at hand. `kind`: internal, server, client, producer, consumer."""
    if _tracer is None:
        return _OFF
    return _span(name, kind, None if parent is None else _context(parent), attributes)


class Batch:
    """The span of a worker's batch, whose parts are in several threads. It is a part of the first job's trace that is
    sampled, and linked to the span of each job; if none of them is sampled, it is nothing."""

    __slots__ = ("_context", "_span")

    def __init__(self, span: Any = None, context: Any = None) -> None:
        self._span, self._context = span, context

    def part(self, name: str, **attributes: Value) -> AbstractContextManager[Any]:
        """A context manager around a part of the batch's life, in any thread."""
        return _OFF if self._span is None else _span(name, "internal", self._context, attributes)

    def record(self, name: str, began: int) -> None:
        """A part that began at that moment, in nanoseconds since the epoch, and ends now."""
        if self._span is not None:
            _tracer.start_span(name, context=self._context, start_time=began).end()

    def end(self, **attributes: Value) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)
            self._span.end()


NO_BATCH = Batch()


def batch(name: str, traceparents: Sequence[str], began: int, **attributes: Value) -> Batch:
    """The span of a batch with images of jobs that were submitted under these spans."""
    sampled = [parent for parent in traceparents if int(parent[-2:], 16) & 1]
    if _tracer is None or not sampled:
        return NO_BATCH
    from opentelemetry import trace

    links = [trace.Link(trace.get_current_span(_context(parent)).get_span_context()) for parent in traceparents]
    made = _tracer.start_span(
        name, context=_context(sampled[0]), kind=trace.SpanKind.CONSUMER, links=links, attributes=attributes,
        start_time=began,
    )  # fmt: skip
    return Batch(made, trace.set_span_in_context(made))


def now() -> int:
    """This moment, in nanoseconds since the epoch, as spans begin and end."""
    return time.time_ns()


_OFF: AbstractContextManager[Any] = nullcontext()


@contextmanager
def _span(name: str, kind: str, context: Any, attributes: dict[str, Value]) -> Iterator[Any]:
    from opentelemetry import trace

    with _tracer.start_as_current_span(
        name, context=context, kind=trace.SpanKind[kind.upper()], attributes=attributes, record_exception=False,
        set_status_on_exception=False,
    ) as made:  # fmt: skip
        try:
            yield made
        except BaseException as error:
            made.set_status(trace.StatusCode.ERROR, type(error).__name__)  # its text may quote a prompt
            raise


def _context(parent: str) -> Any:
    from opentelemetry import trace

    _, in_trace, in_span, flags = parent.split("-")
    known = trace.SpanContext(
        int(in_trace, 16), int(in_span, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(known))
