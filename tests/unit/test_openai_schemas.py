"""The stock client's words for our states."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest
from openai.types import Batch

from services.api.openai import schemas
from services.core.batches.batch_jobs import BatchJob
from services.core.model.states import JobState

NOW = datetime(2026, 11, 25, tzinfo=UTC)
JOB = BatchJob(
    id=1, state="queued", stop_reason=None, input_file_id=2, output_file_id=None, error_file_id=None,
    completion_window="24h", labels={}, problems=None, requests=2, done=0, failed=0, created_at=NOW, expires_at=NOW,
    opened_at=NOW, finalizing_at=None, cancel_requested_at=None, finished_at=None,
)  # fmt: skip


def test_every_state_has_a_word_that_the_client_knows():
    assert set(schemas.STATUS) == set(JobState)
    assert set(schemas.STATUS.values()) == set(get_args(Batch.model_fields["status"].annotation))


@pytest.mark.parametrize(
    ("change", "word", "stamped"),
    [
        ({"state": "failed", "problems": [{"code": "x", "message": "y"}]}, "failed", "failed_at"),
        ({"state": "failed"}, "completed", "completed_at"),  # all its requests failed: that is an answer
        ({"state": "completed"}, "completed", "completed_at"),
        ({"state": "cancelled", "stop_reason": "cancelled"}, "cancelled", "cancelled_at"),
        ({"state": "expired", "stop_reason": "expired"}, "expired", "expired_at"),
    ],
)
def test_an_ended_batch_has_the_one_timestamp_of_its_end(change, word, stamped):
    shown = schemas.batch(replace(JOB, finished_at=NOW, **change))
    assert shown.status == word
    ends = {name: getattr(shown, name) for name in ("failed_at", "completed_at", "cancelled_at", "expired_at")}
    assert {name for name, moment in ends.items() if moment is not None} == {stamped}
    Batch.model_validate(shown.model_dump(), strict=True)


def test_what_is_out_of_time_is_finalizing_and_was_not_cancelled():
    late = replace(JOB, state="cancelling", stop_reason="expired", cancel_requested_at=NOW)
    assert (schemas.batch(late).status, schemas.batch(late).cancelling_at) == ("finalizing", None)
    asked = replace(late, stop_reason="cancelled")
    assert (schemas.batch(asked).status, schemas.batch(asked).finalizing_at) == ("cancelling", None)
