"""Scores of images, an index of them by job, name and value, and perceptual hashes."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "0030"
down_revision = "0029"

_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_PROTECTED = """
ALTER TABLE image_scores ENABLE ROW LEVEL SECURITY;
ALTER TABLE image_scores FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON image_scores TO {system} USING ((SELECT presswork_house()));
CREATE POLICY tenant ON image_scores TO {system}, presswork_tenant
  USING (EXISTS (SELECT FROM jobs WHERE jobs.id = job_id OFFSET 0));
GRANT SELECT ON image_scores TO presswork_tenant;
"""


def upgrade() -> None:
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    connection.exec_driver_sql(_PROTECTED.format(system=system))
    if roles.application is not None:
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON image_scores TO {roles.application}")
    if roles.reader is not None:
        connection.exec_driver_sql(f"GRANT SELECT ON image_scores TO {roles.reader}")
