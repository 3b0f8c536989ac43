"""Copies the payloads of new requests."""

from collections.abc import Iterable

from sqlalchemy import Connection

from services.core.db import columns, copying, partitions


def copy(connection: Connection, job_id: int, pieces: Iterable[bytes]) -> None:
    """Copies lines that `columns.payload_row` made."""
    payloads_leaf = partitions.leaf(connection, "payloads", job_id)
    copying.rows(connection, f"COPY {payloads_leaf} ({columns.names(columns.PAYLOAD)}) FROM STDIN", pieces)
