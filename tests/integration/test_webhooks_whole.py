"""From a batch of the stock client to its program: a scheduler's process, as its own role, and a worker at work."""

import json
from io import BytesIO

import openai
import pytest

from tests import receiving
from tests.processes import Process
from tests.rendering import rendering
from tests.waiting import until
from tests.web import open_api


@pytest.fixture
def settings(settings):
    return receiving.to_this_machine(settings)


def test_the_end_of_a_batch_reaches_a_program_which_the_stock_client_verifies(settings, store, environ, tmp_path):
    mine = {"PRESSWORK_WEBHOOK_NETWORKS": "127.0.0.1", "PRESSWORK_WEBHOOK_HTTP": "1"}
    with receiving.receiving() as receiver, open_api(settings) as api, rendering(settings, store):
        scheduler = Process("scheduler.app", environ | mine, tmp_path / "scheduler.log")
        try:
            made = api.http.post("/v1/webhooks", json={"url": receiver.url}).json()
            with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, webhook_secret=made["secret"]) as client:
                body = {"prompt": "a mug", "size": "64x64"}
                line = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": body}
                for content in (json.dumps(line), "nonsense"):
                    file = client.files.create(file=("a.jsonl", BytesIO(content.encode())), purpose="batch")
                    client.batches.create(
                        input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
                    )
                until(lambda: {"batch.completed", "batch.failed", "job.completed"} <= {*receiver.types}, seconds=60)
                for headers, raw in receiver.came:
                    told = json.loads(raw)
                    if told["type"].startswith("batch."):
                        found = client.batches.retrieve(client.webhooks.unwrap(raw, headers).data.id)
                        assert f"batch.{found.status}" == told["type"]
        finally:
            scheduler.kill()
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == len(receiver.came)
