"""Logs what the content policy refused at a door: who asked, and how many prompts; never a prompt.

Nothing of the submission is recorded, so the event has a transaction of its own, which is committed before the answer.
"""

from services.core.db.database import Database
from services.core.events import log
from services.core.model.errors import REFUSED_BY_POLICY, InvalidSubmission


def record(database: Database, tenant_id: int, refused: InvalidSubmission) -> None:
    """Logs an event if prompts were refused by the content policy. Raises DatabaseUnavailable."""
    prompts = sum(problem.code == REFUSED_BY_POLICY for problem in refused.problems)
    if prompts:
        with database.begin(tenant_id) as connection:
            subject = f"tenant/{tenant_id}"
            log.append(connection, "policy.refused", subject, tenant_id=tenant_id, data={"prompts": prompts})
