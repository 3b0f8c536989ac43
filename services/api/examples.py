"""An example of each JSON body, by operation."""

from typing import Any

_MATRIX = {
    "template": "a {colour} {thing} on a wooden floor",
    "vary": {"colour": ["red", "teal"], "thing": ["mug", "hat"]},
    "repeat": 4,
}
_TARGET = {"job": {"images": [{"prompt": "a red mug", "n": 4}], "priority": "low"}}
BODIES: dict[str, Any] = {
    "submit_job": {
        "images": [
            {"prompt": "a red mug on a wooden floor", "n": 4, "seed": 7, "custom_id": "mug-1"},
            {"prompt": "a teal bottle", "output_format": "webp", "output_compression": 80, "metadata": {"sku": "B-12"}},
        ],
        "priority": "high",
        "labels": {"run": "nightly"},
    },
    "preview_job": {"matrix": _MATRIX},
    "estimate_job": {"shapes": [{"images": 10_000}]},
    "append_chunk": {"images": [{"prompt": "a red mug", "custom_id": "mug-1"}]},
    "finalize_draft": {"chunks": 12, "images": 600_000},
    "change_job": {"priority": "low", "labels": {"run": "nightly"}},
    "change_retention": {"payloads": 30, "objects": 365},
    "create_key": {"name": "the shop's nightly run", "scopes": ["view", "submit"], "expires_in_seconds": 7_776_000},
    "create_tenant": {"name": "acme", "weight": 2, "quotas": {"images_queued": 1_000_000, "images_in_flight": 64}},
    "change_tenant": {"quotas": {"bytes_stored": 549_755_813_888, "images_in_flight": None}},
    "create_tenant_key": {"name": "acme's first key", "scopes": ["view", "submit", "admin"]},
    "act_on_jobs": {"action": "cancel", "status": ["queued"], "label": "run:nightly"},
    "preview_jobs_action": {"action": "delete", "status": ["cancelled", "expired"]},
    "save_view": {"page": "jobs", "name": "tonight's failures", "query": "status=failed&label=run%3Anightly"},
    "change_view": {"name": "failures of the night"},
    "add_policy_term": {"term": "blood bath"},
    "accept_license": {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
    "check_policy": {"text": "a red mug on a wooden floor"},
    "retry_job": {"priority": "high"},
    "mark_images": {"mark": "accepted", "indexes": [0, 3, 17]},
    "create_export": {"format": "webdataset", "options": {"images_per_shard": 1_000}},
    "create_dataset": {
        "name": "mugs", "labels": ["run:mugs"], "split": {"train": 0.98, "val": 0.02}, "filters": {"flagged": False},
    },
    "change_dataset": {"filters": {"marks": ["accepted", "starred"]}},
    "add_sources": {"jobs": ["job_039y879re4x32"]},
    "remove_sources": {"labels": ["run:mugs"]},
    "export_dataset": {"while_running": True},
    "create_schedule": {
        "name": "nightly", "cron": "0 1 * * *", "timezone": "Europe/Berlin", "deadline": "06:00", "target": _TARGET,
    },
    "put_schedule": {"cron": "0 9 * * MON-FRI", "timezone": "America/New_York", "target": _TARGET, "overlap": "queue"},
    "change_schedule": {"paused": True},
    "create_webhook": {
        "url": "https://shop.example/hooks/presswork", "events": ["job.completed", "job.failed", "batch.*"],
        "labels": {"run": "nightly"},
    },
    "change_webhook": {"enabled": False},
    "put_catalogue": {
        "source": {"url": "https://shop.example/feed.csv"},
        "id": "sku",
        "publish": {"require": 0.98, "public": True},
        "variants": {"front": {"prompt": "a {{ colour }} {{ title }} on white", "size": "512x512"}},
    },
    "set_catalogue_file": {"file_id": "file-039yaf9w3gxt6"},
    "run_catalogue": {"plan_only": True},
    "publish_version": {"version": 41},
    "redraw_changes": {"indexes": [7, 12]},
    "create_upload": {
        "filename": "requests.jsonl", "purpose": "batch", "bytes": 104_857_600, "mime_type": "application/jsonl",
    },
    "complete_upload": {"part_ids": ["part_039yaf9w3gxt6", "part_039yafactkzz6"]},
    "create_batch": {
        "input_file_id": "file-039yaf9w3gxt6", "endpoint": "/v1/images/generations", "completion_window": "24h",
        "metadata": {"run": "nightly"},
    },
    "generate_images": {"prompt": "a teal bottle on a white background", "n": 2, "response_format": "url"},
}  # fmt: skip
