"""Deliveries of one state and one type are listed by an index."""

from migrations import indexes

revision = "0044"
down_revision = "0043"

_INDEXES = {"webhook_deliveries_of_both": "webhook_deliveries (endpoint_id, state, type, id)"}


def upgrade() -> None:
    indexes.build(_INDEXES)
