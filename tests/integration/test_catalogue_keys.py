"""A catalogue's render keys are those of the jobs that it submits."""

from pathlib import Path

from services.core.catalogues import definition, expansion, planning, version_list
from services.core.db.database import Database
from services.core.fleet import models
from services.core.items.records import Item
from services.core.settings import Settings
from tests import factories


def test_a_key_is_the_one_that_a_submission_of_its_request_gets(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    factories.register(database)
    given = {
        "source": {"file": "f"},
        "id": "sku",
        "variants": {
            "plain": {"prompt": "a {{ title }}"},
            "full": {
                "prompt": "{{ title }}, gr\u00fcn \U0001f375\\ 'quoted'", "negative_prompt": "no {{ title }}",
                "seed": 2**63 - 1,
                "size": "64x64", "num_inference_steps": 7, "guidance_scale": 0.5, "output_format": "webp",
                "output_compression": 80, "model": "simulated",
            },
            "whole": {"prompt": "a {{ title }}", "output_compression": 100, "guidance_scale": 3},
        },
    }  # fmt: skip
    found, problems = definition.read("shop", given)
    assert found is not None, problems
    with database.begin_system() as connection:
        served = models.registry(connection)
    variants, problems = expansion.compile_variants("shop", found, served, "simulated")
    assert not problems and {variant.model for variant in variants} == {"simulated"}
    items = [Item(1, {"sku": 1, "title": "mug\r\ntall"}), Item(2, {"sku": "2", "title": "cup\tline"})]
    path = tmp_path / "list"
    planning.make(found, variants, items, unit="line", previous=None, path=path)
    planned = list(version_list.entries(path))
    assert len(planned) == 6
    factories.submit(database, settings, [entry.request for entry in planned])
    keys = set()
    while (claim := factories.claim(database)) is not None:
        keys |= {image.render_key for image in claim.images}
    assert keys == {entry.render_key.hex() for entry in planned}
    unserved, problems = expansion.compile_variants(
        "shop", found.model_copy(update={"model": "none"}), served, "simulated"
    )
    assert [problem.param for problem in problems] == ["variants.plain.model", "variants.whole.model"]
    assert "it must be one of: simulated" in problems[0].message and len(unserved) == 1
