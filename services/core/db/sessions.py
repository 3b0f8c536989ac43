"""Sessions with Postgres: how one is opened, and the message that opens each transaction.

Nothing that Presswork relies on stands in a session. A connection pooler may give every transaction another session,
and a role, a database or a server may have any defaults. So the message that begins a transaction also sets everything:
time limits, formats, planner and, for a tenant, the role. It takes the same one round trip as `BEGIN` alone.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import URL

TENANT_ROLE = "presswork_tenant"

# What a transaction must not inherit. The server may have sessions of other programs in mind.
_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "15s",  # a host that vanished within a transaction locks a claim for so long
    # A page is read in the order of an index. On a table that the planner knows little about, it would rather read all
    # of a tenant's rows through a bitmap and sort them.
    "enable_bitmapscan": "off",
    "search_path": "public",
    "row_security": "on",
    # Formats that the driver reads.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
}
# PostgreSQL 18.6 crashes (signal 11 in perform_pruning_base_step) if a statement that prunes partitions at run time
# checks a row again that was changed since its snapshot. Only statements that write or lock rows do so.
_WRITING = ("", {"enable_partition_pruning": "off"})
_READING = (" READ ONLY", {"enable_partition_pruning": "on"})
_SINCE = {"transaction_timeout": ("0", 170_000)}  # settings that older servers do not know
_NESTED_LOOPS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # They are planned once: a plan for the values at hand would be the same one, and takes longer than to run it.
    "plan_cache_mode": "force_generic_plan",
}
_NOT_PLAIN = re.compile(r"[^ -~]|['\\%]")

_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def connect_options(url: URL) -> dict[str, object]:
    """What the driver is told about every connection to that address."""
    if "target_session_attrs" in url.query:
        return dict(_CONNECT)
    hosts = url.query.get("host", url.host or "")
    several = len(hosts) > 1 if isinstance(hosts, tuple) else "," in hosts
    # Of several servers, the one that can be written to. Of one server each transaction finds out: a pooler tells its
    # clients for as long as it runs what its first session was.
    return _CONNECT | {"target_session_attrs": "read-write" if several else "any"}


class Driver(Protocol):
    """The part of a psycopg connection that is used here."""

    info: Any
    prepare_threshold: int | None

    def execute(self, query: str) -> Any: ...


class Opening:
    """The text that opens a process's transactions. `application` names the process, in the log of events too."""

    def __init__(self, application: str, *, nested_loops: bool) -> None:
        self._settings = {"application_name": application} | _SETTINGS | (_NESTED_LOOPS if nested_loops else {})
        self._texts: dict[tuple[int, bool], str] = {}

    def text(self, server_version: int, tenant: int | None, actor: str = "", *, reads: bool = False) -> str:
        """`actor` is who acts, if not the program itself. `reads`: the transaction can neither write nor lock rows, and
        prunes partitions. Its result is one row: whether the session is read-only.

        `SHOW` comes first, since the driver's cursor shows the first result. It reads no data, so the transaction
        starts with BEGIN all the same.
        """
        known = self._texts.get((server_version, reads))
        if known is None:
            later = {name: value for name, (value, since) in _SINCE.items() if server_version >= since}
            access, pruning = _READING if reads else _WRITING
            known = self._texts[server_version, reads] = (
                f"SHOW /* sessions.open */ transaction_read_only; BEGIN ISOLATION LEVEL READ COMMITTED{access}; "
                + _local(self._settings | pruning | later)
            )
        more = {"app.actor": actor} if actor else {}
        more |= {} if tenant is None else {"role": TENANT_ROLE, "app.tenant": str(int(tenant))}
        return f"{known}; {_local(more)}" if more else known


def greet(driver: Driver) -> None:
    """For a new connection. Through a pooler, which invents a process id, no statement is prepared: the next
    transaction may be on another session, where another client has prepared something else by the same name."""
    if is_pooled(driver):
        driver.prepare_threshold = None


def is_pooled(driver: Driver) -> bool:
    """Whether there is a connection pooler between the client and the server."""
    return bool(driver.execute("SELECT pg_backend_pid()").fetchone()[0] != driver.info.backend_pid)


def _local(settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET LOCAL {name} = '{_NOT_PLAIN.sub('?', value)}'" for name, value in settings.items())
