"""Licences of models, as their cards name them."""

from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.execute("ALTER TABLE models ADD COLUMN license jsonb")
