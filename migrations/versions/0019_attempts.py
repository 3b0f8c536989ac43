"""What the page of an image needs for as long as its job: each attempt, with its worker and its times.

Claims are forgotten after a day. So a failure says which worker had claimed the image, and when; and an image whose
lease ran out has a row too, of code `lost`. Only what failed is written.
"""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
