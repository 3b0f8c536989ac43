"""What workers measure of themselves: seconds an image, for each shape and device."""

import dataclasses
import math

import psycopg
import pytest
from sqlalchemy import Row, text

from services.core.db.database import Database
from services.core.fleet import throughput
from services.core.model.specs import Shape
from tests.factories import submit
from tests.render_loops import counts, mugs

SHAPE = Shape("revision", 512, 512, 10, True)


def record(database: Database, *seen: tuple[int, float], shape: Shape = SHAPE, device: str = "here") -> None:
    for images, seconds in seen:
        with database.begin_system() as connection:
            throughput.record(connection, shape, device, images=images, seconds_per_image=seconds)


def rows(database: Database) -> list[Row]:
    with database.begin_system() as connection:
        return list(connection.execute(text("SELECT * FROM render_rates ORDER BY device, width")))


def test_the_first_images_are_weighed_alike_however_full_their_batches_were(database):
    record(database, (16, 1.0), (4, 3.0), (12, 2.0))
    (row,) = rows(database)
    mean = (16 * 1.0 + 4 * 3.0 + 12 * 2.0) / 32
    variance = (16 * (1.0 - mean) ** 2 + 4 * (3.0 - mean) ** 2 + 12 * (2.0 - mean) ** 2) / 32
    assert row.images == 32
    assert row.seconds_per_image == pytest.approx(mean)
    assert row.deviation == pytest.approx(math.sqrt(variance))


def test_a_device_that_has_become_slower_is_soon_said_to_be_slower(database):
    record(database, (10_000, 1.0), *[(16, 2.0)] * 40)
    (row,) = rows(database)
    assert row.images == 10_640
    assert row.seconds_per_image == pytest.approx(2.0 - (1 - 16 / throughput.WINDOW) ** 40)
    record(database, (5_000, 7.0))  # more at once than the window holds
    assert rows(database)[0].seconds_per_image == pytest.approx(7.0)


def test_each_shape_and_each_device_has_a_row_of_its_own(database):
    record(database, (16, 1.0))
    record(database, (16, 2.0), shape=dataclasses.replace(SHAPE, width=768))
    record(database, (16, 3.0), device="there")
    assert [row.seconds_per_image for row in rows(database)] == [1.0, 2.0, 3.0]


def test_an_image_that_rides_alone_is_not_said_to_cost_a_whole_batch(make_render_loop, database, fast):
    render_loop = make_render_loop(dataclasses.replace(fast, simulated_batch_ms=320.0))
    submit(database, fast, mugs(1), num_inference_steps=2)
    render_loop.run()
    (row,) = rows(database)
    assert (row.model_revision, row.width, row.steps, row.guided) == (render_loop.pipeline.card.revision, 64, 2, True)
    assert (row.device, row.images) == (render_loop.device.name, 1)
    assert 0.32 / 16 <= row.seconds_per_image < 0.32 / 2


def test_only_what_was_rendered_is_measured(make_render_loop, database, fast):
    render_loop = make_render_loop()
    submit(database, fast, mugs(16, _5="fault:raise"))
    render_loop.run()
    (row,) = rows(database)
    assert row.images == 15
    submit(database, fast, mugs(5), head={"dedupe": True})
    render_loop.run()
    assert rows(database) == [row]


def test_a_rate_that_cannot_be_recorded_fails_nothing(make_render_loop, database, fast, stack, database_url):
    admin = psycopg.conninfo.make_conninfo(
        stack.superuser_url.replace("+psycopg", ""), dbname=database_url.rpartition("/")[2]
    )
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("REVOKE INSERT ON render_rates FROM presswork_app, presswork_worker")
    render_loop = make_render_loop()
    job_id = submit(database, fast, mugs(4))
    render_loop.run()
    assert counts(database, job_id) == {"done": 4}
    assert rows(database) == []
