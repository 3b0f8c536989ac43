"""An image asked for again, by curl, the command and Python."""

import json
import shlex
from typing import Any

from services.core.jobs import queries, shapes


def image(base: str, found: queries.ImageView, shape: shapes.JobShape | None) -> list[tuple[str, str]]:
    """A name and a text to copy, of each way. Without `shape`, the model's defaults hold."""
    asked: dict[str, Any] = {"prompt": found.payload.prompt, "seed": found.seed}
    if found.payload.negative_prompt:
        asked["negative_prompt"] = found.payload.negative_prompt
    if shape is not None:
        asked |= {"model": shape.model, "size": f"{shape.width}x{shape.height}", "num_inference_steps": shape.steps}
    asked |= {"guidance_scale": found.payload.guidance_scale, "output_format": found.payload.output_format}
    body = json.dumps({"images": [asked]}, ensure_ascii=False)
    curl = (
        f'curl -s {base}/v1/jobs -H "Authorization: Bearer $PRESSWORK_API_KEY" \\\n'
        f'  -H "Content-Type: application/json" \\\n  -d {shlex.quote(body)}'
    )
    line = shlex.quote(json.dumps(asked, ensure_ascii=False))
    command = f"printf '%s\\n' {line} > again.jsonl\npresswork submit again.jsonl --watch"
    python = (
        "import os\n\nfrom presswork_client import Client\n\n"
        f'with Client({base!r}, os.environ["PRESSWORK_API_KEY"]) as client:\n    client.submit([{asked!r}])'
    )
    return [("curl", curl), ("The command", command), ("Python", python)]
