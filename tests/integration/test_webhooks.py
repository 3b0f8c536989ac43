"""Webhooks, from the event to the receiver: derived once, signed, sent until they arrive. The sockets are real."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import standardwebhooks
from sqlalchemy import event, text

from services.core.jobs import lifecycle
from services.core.model.errors import Conflict
from services.core.webhooks import deliveries, deriving, endpoints, retries
from services.core.webhooks.asked import WebhookChanges
from services.core.webhooks.sealing import SecretUnreadable
from tests import factories, receiving
from tests.factories import TENANT
from tests.receiving import answer, derive, happen, hurry, listed, make, runner, tries
from tests.waiting import until


@pytest.fixture
def settings(settings):
    return receiving.to_this_machine(settings)


@pytest.fixture
def receiver():
    with receiving.receiving() as found:
        yield found


def state(database, endpoint):
    with database.begin(endpoint.tenant_id) as connection:
        return endpoints.find(connection, endpoint.tenant_id, endpoint.id)


def kinds(database, endpoint):
    with database.begin_system() as connection:
        subject = f"webhook/{endpoint.id}"
        query = text("SELECT kind, data FROM events WHERE subject = :subject ORDER BY id")
        return [(row.kind, row.data) for row in connection.execute(query, {"subject": subject})]


def test_a_message_is_verified_by_the_package_of_the_standard_and_each_changed_byte_is_refused(
    database, settings, receiver
):
    _, secret = make(database, settings, receiver.url)
    happen(database)
    assert derive(database) == 1
    assert runner(database, settings).run_once()
    [(headers, body)] = receiver.came
    hook = standardwebhooks.Webhook(secret)
    message = hook.verify(body.decode(), headers)
    assert message["type"] == "export.completed" and message["object"] == "event"
    assert message["data"]["id"].startswith("export_") and message["id"] == headers["webhook-id"]
    assert secret.startswith("whsec_") and headers["content-type"] == "application/json"
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 1
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            hook.verify(bytes(changed).decode(errors="replace"), headers)
    old = headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 360)}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        hook.verify(body.decode(), old)


def test_a_jobs_end_is_told_once_with_its_counts_and_labels(database, settings, receiver):
    factories.register(database)
    chosen, _ = make(database, settings, receiver.url, events=["job.completed"], labels={"run": "nightly"})
    other, _ = make(database, settings, receiver.url, events=["job.completed"], labels={"run": "daily"})
    factories.submit(database, settings, 2, head={"labels": {"run": "nightly"}})
    claim = factories.claim(database)
    factories.settle(database, claim)
    with database.begin_system() as connection:
        lifecycle.finish(connection)
        lifecycle.finish(connection)
    assert derive(database) == 1
    assert derive(database) == 0
    runner(database, settings).run_once()
    [message] = receiver.messages
    data = message["data"]
    assert (message["type"], data["done"], data["total"]) == ("job.completed", 2, 2)
    assert data["id"].startswith("job_") and data["labels"] == {"run": "nightly"} and data["object"] == "job"
    assert not listed(database, other) and [one.state for one in listed(database, chosen)] == ["delivered"]


@pytest.mark.parametrize(
    ("kind", "refused", "name"),
    [
        ("completed", False, "batch.completed"), ("failed", True, "batch.failed"), ("failed", False, "batch.completed"),
        ("expired", False, "batch.expired"), ("cancelled", False, "batch.cancelled"),
    ],
)  # fmt: skip
def test_the_stock_client_unwraps_the_end_of_a_batch(database, settings, receiver, kind, refused, name):
    factories.register(database)
    _, secret = make(database, settings, receiver.url, events=["batch.*"])
    job = factories.submit(database, settings, 1)
    problems = '[{"code": "x", "message": "y"}]' if refused else None
    with database.begin_system() as connection:
        change = "UPDATE jobs SET input_file_id = 5, problems = CAST(:problems AS jsonb) WHERE id = :id"
        connection.execute(text(change), {"id": job, "problems": problems})
    happen(database, f"job.{kind}", f"job/{job}")
    assert derive(database) == 1
    runner(database, settings).run_once()
    [(headers, body)] = receiver.came
    client = openai.OpenAI(api_key="unused", base_url="http://127.0.0.1:1")
    told = client.webhooks.unwrap(body, headers, secret=secret)
    assert (told.type, told.object) == (name, "event") and told.data.id.startswith("batch_")
    assert type(told).__name__ == f"{name.title().replace('.', '')}WebhookEvent"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"batch_", b"hatch_"), headers, secret=secret)


def test_no_event_is_lost_or_told_twice_though_those_who_derive_die_and_meet(database, settings, receiver):
    endpoint, _ = make(database, settings, receiver.url)
    happen(database, "view.saved", "view/1")
    derive(database)

    def die(connection):
        assert deriving.derive(connection) > 0
        raise ZeroDivisionError

    written = threading.Event()

    def write():
        for number in range(100):
            happen(database, "view.changed", f"view/{number}")
        written.set()

    def read():
        while not written.is_set():
            derive(database)

    threads = [threading.Thread(target=verb) for verb in (write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    happen(database, "view.deleted", "view/1")
    with database.begin_system() as connection:
        receiving.numbering.number(connection)
    with pytest.raises(ZeroDivisionError), database.begin_system() as connection:
        die(connection)
    until(lambda: derive(database) == 0 and len(listed(database, endpoint)) == 102)
    told = listed(database, endpoint)
    seqs = [one.seq for one in told]
    assert len({*seqs}) == 102 and seqs == sorted(seqs, reverse=True)


def test_many_events_are_read_in_several_passes_and_none_is_passed_over(database, settings, receiver):
    derive(database)
    endpoint, _ = make(database, settings, receiver.url, events=["view.*"])
    for number in range(7):
        happen(database, "view.saved", f"view/{number}")
        happen(database, "file.created", f"file/{number}")
    with database.begin_system() as connection:
        receiving.numbering.number(connection)
    passes = []
    for _ in range(6):
        with database.begin_system() as connection:
            passes.append(deriving.derive(connection, most=4))
    assert sum(passes) == 7 and max(passes) <= 2 and passes[-1] == 0
    assert len(listed(database, endpoint)) == 7


def test_an_endpoint_made_in_the_middle_of_a_pass_hears_of_what_happens_after_it(database, settings, receiver):
    happen(database)
    made = []

    def in_between(connection, cursor, sql, *_):
        if "deriving." in sql and "deriving.cursor" not in sql and not made:
            made.append(make(database, settings, receiver.url, events=["view.saved"])[0])
            happen(database, "view.saved", "view/1")
            with database.begin_system() as other:
                receiving.numbering.number(other)

    with database.begin_system() as connection:
        receiving.numbering.number(connection)
    with database.begin_system() as connection:
        event.listen(connection, "after_cursor_execute", in_between)
        deriving.derive(connection)
        event.remove(connection, "after_cursor_execute", in_between)
    derive(database)
    assert [one.type for one in listed(database, made[0])] == ["view.saved"]


def test_an_endpoint_gets_what_happens_while_it_is_enabled(database, settings, receiver):
    happen(database, "view.saved", "view/1")
    derive(database)
    endpoint, _ = make(database, settings, receiver.url)
    happen(database, "view.changed", "view/1")
    derive(database)
    with database.begin(TENANT) as connection:
        endpoints.change(connection, TENANT, endpoint.id, WebhookChanges(enabled=False))
    happen(database, "view.changed", "view/2")
    derive(database)
    assert not runner(database, settings).run_once()
    with database.begin(TENANT) as connection:
        endpoints.change(connection, TENANT, endpoint.id, WebhookChanges(enabled=True))
    happen(database, "view.deleted", "view/1")
    derive(database)
    runner(database, settings).run_once()
    assert receiver.types == ["view.changed", "view.deleted"]
    assert [kind for kind, _ in kinds(database, endpoint)] == ["webhook.created", "webhook.disabled", "webhook.enabled"]


def test_a_failure_is_tried_again_after_ever_longer_pauses_and_at_last_given_up(database, settings, receiver):
    receiver.reply = lambda handler: answer(handler, 500, b"oh \0 no")
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    pauses = []
    for _ in range(len(retries.PAUSES) + 1):
        assert runner(database, settings).run_once()
        assert not runner(database, settings).run_once(), "not before the pause is over"
        [delivery] = listed(database, endpoint)
        if delivery.next_at is not None:
            pauses.append((delivery.next_at - tries(database, delivery)[-1].at).total_seconds())
        hurry(database)
    assert delivery.state == "failed" and not runner(database, settings).run_once()
    assert all(least <= pause < least * 1.2 + 1 for least, pause in zip(retries.PAUSES, pauses, strict=True))
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    found = tries(database, delivery)
    assert [one.number for one in found] == list(range(1, 11)) and {one.status for one in found} == {500}
    assert {one.answer for one in found} == {""}, "an answer from within is kept from those who may not read there"
    receiver.reply = answer
    with database.begin(TENANT) as connection:
        deliveries.redeliver(connection, endpoint, delivery.id)
    runner(database, settings).run_once()
    [delivery] = listed(database, endpoint)
    assert (delivery.state, delivery.tries) == ("delivered", 11) and state(database, endpoint).failures == 0


def test_retry_after_is_honoured_up_to_a_day(database, settings, receiver):
    receiver.reply = lambda handler: answer(handler, 429, Retry_After="600")
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    [delivery] = listed(database, endpoint)
    assert 590 < (delivery.next_at - delivery.created_at).total_seconds() < 640
    with database.begin_system() as connection:
        rest = connection.execute(text("SELECT not_before - now() FROM webhook_endpoints")).scalar_one()
    assert rest.total_seconds() > 590


@pytest.mark.parametrize(
    "asked",
    [
        "Fri, 27 Nov 2026 00:00:00 +99999999999999999999", "1 Jan 99999999999999999999 00:00:00 GMT",
        "Fri, 27 Nov 2026 99999999999:00:00", "Fri, 31 Dec 9999 23:59:59 -1200", "9" * 90, "", "-5", "soon",
    ],
)  # fmt: skip
def test_a_retry_after_that_is_no_moment_is_a_failure_like_any_other(database, settings, receiver, asked):
    receiver.reply = lambda handler: answer(handler, 503, Retry_After=asked)
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    [delivery] = listed(database, endpoint)
    assert (delivery.tries, delivery.status, delivery.state) == (1, 503, "pending")


@pytest.mark.parametrize("status", [200, 410, 500])
def test_what_is_asked_for_again_while_a_try_goes_on_is_sent_again(database, settings, receiver, status):
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    with database.begin_system() as connection:  # the next try is the last one
        connection.execute(text("UPDATE webhook_deliveries SET round = :round"), {"round": len(retries.PAUSES)})
    [delivery] = listed(database, endpoint)

    def ask_again_first(handler):
        receiver.reply = answer
        with database.begin(TENANT) as connection:
            deliveries.redeliver(connection, endpoint, delivery.id)
        answer(handler, status)

    receiver.reply = ask_again_first
    runner(database, settings).run_once()
    with database.begin(TENANT) as connection:
        endpoints.change(connection, TENANT, endpoint.id, WebhookChanges(enabled=True, description="mended"))
    runner(database, settings).run_once()
    assert len(receiver.came) == 2
    [delivery] = listed(database, endpoint)
    assert (delivery.state, delivery.tries) == ("delivered", 2)
    assert [one.status for one in tries(database, delivery)] == [status, 200]


def test_the_operator_chooses_to_hear_of_tenants_and_ids_are_those_of_the_api(database, settings, receiver):
    make(database, settings, receiver.url, events=["tenant.suspended", "policy.*"])
    happen(database, "tenant.suspended", "tenant/2")
    happen(database, "policy.term_added", "policy_term/7")
    derive(database)
    runner(database, settings).run_once()
    assert [one["data"]["id"][:7] for one in receiver.messages] == ["tenant_", "term_00"]


def test_410_disables_and_so_do_days_of_failing(database, settings, receiver):
    receiver.reply = lambda handler: answer(handler, 410)
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    assert (state(database, endpoint).state, state(database, endpoint).reason) == ("disabled", "gone")
    assert kinds(database, endpoint)[-1] == ("webhook.disabled", {"reason": "gone"})
    with database.begin(TENANT) as connection, pytest.raises(Conflict):
        deliveries.test(connection, state(database, endpoint))
    failing, _ = make(database, settings, "http://127.0.0.1:9/closed")
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    assert state(database, failing).failures == 1
    for days, expected in ((4, "enabled"), (6, "disabled")):
        hurry(database)
        with database.begin_system() as connection:
            age = "UPDATE webhook_endpoints SET failing_since = now() - make_interval(days => :days) WHERE id = :id"
            connection.execute(text(age), {"days": days, "id": failing.id})
        runner(database, settings).run_once()
        assert state(database, failing).state == expected
        assert state(database, failing).failures == (2 if days == 4 else 3), "the try was recorded"
    assert kinds(database, failing)[-1] == ("webhook.disabled", {"reason": "failing"})
    [delivery] = listed(database, failing)
    assert delivery.state == "pending", "it is sent once the webhook is enabled"


def test_the_secret_before_a_rotation_signs_for_a_day(database, settings, receiver):
    endpoint, first = make(database, settings, receiver.url)
    with database.begin(TENANT) as connection:
        _, second = endpoints.rotate(connection, settings.secrets, TENANT, endpoint.id)
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    headers, body = receiver.came[-1]
    assert len(headers["webhook-signature"].split()) == 2 and first != second
    for secret in (first, second):
        standardwebhooks.Webhook(secret).verify(body.decode(), headers)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE webhook_endpoints SET old_until = now()"))
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    headers, body = receiver.came[-1]
    standardwebhooks.Webhook(second).verify(body.decode(), headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(first).verify(body.decode(), headers)


def test_receivers_notice_nothing_when_the_installations_secret_is_exchanged(database, settings, receiver):
    endpoint, secret = make(database, settings, receiver.url)
    both = replace(settings, secret="the new one", accepted_secret=settings.secret)
    alone = replace(settings, secret="the new one", accepted_secret="")
    with database.begin_system() as connection:
        row = connection.execute(text("SELECT secret FROM webhook_endpoints")).scalar_one()
        assert secret.encode() not in row and secret.removeprefix("whsec_").encode() not in row
        assert endpoints.reseal(connection, alone.secrets) == 0
        with pytest.raises(SecretUnreadable):
            endpoints.secret(connection, alone.secrets, TENANT, endpoint.id)
    happen(database)
    derive(database)
    runner(database, alone).run_once()
    assert not receiver.came and state(database, endpoint).failures == 0, "it waits for a scheduler that can sign"
    hurry(database)
    runner(database, both).run_once()
    standardwebhooks.Webhook(secret).verify(receiver.came[-1][1].decode(), receiver.came[-1][0])
    with database.begin_system() as connection:
        assert endpoints.reseal(connection, both.secrets) == 1
        assert endpoints.reseal(connection, both.secrets) == 0
        assert endpoints.secret(connection, alone.secrets, TENANT, endpoint.id) == secret


def test_a_slow_endpoint_holds_no_other_and_one_tenant_holds_no_other(database, settings, receiver):
    slow = threading.Event()
    with receiving.receiving(lambda handler: (slow.wait(20), answer(handler))) as held:
        with database.begin_system() as connection:
            insert = "INSERT INTO tenants (name) VALUES ('others') RETURNING id"
            others = connection.execute(text(insert)).scalar_one()
        for _ in range(endpoints.MOST):
            make(database, settings, held.url)
        make(database, settings, receiver.url, tenant=others)
        happen(database)
        happen(database, tenant=others)
        derive(database)
        stopping = threading.Event()
        running = runner(database, settings)
        threads = [threading.Thread(target=running.run, args=(stopping,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(held.came) == 8 and receiver.came, seconds=15)
            happen(database, tenant=others)
            derive(database)
            until(lambda: len(receiver.came) == 2, seconds=5)
            assert len(held.came) == 8, "as many as one tenant may have at once"
        finally:
            slow.set()
            stopping.set()
            for thread in threads:
                thread.join()


def test_no_two_schedulers_send_to_an_endpoint_at_once(database, settings):
    at_once, most, guard = [0], [0], threading.Lock()

    def reply(handler):
        with guard:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.02)
        with guard:
            at_once[0] -= 1
        answer(handler)

    with receiving.receiving(reply) as receiver:
        endpoint, _ = make(database, settings, receiver.url)
        for _ in range(20):
            happen(database)
        derive(database)
        stopping = threading.Event()
        runners = [runner(database, settings, f"scheduler-{number}") for number in range(3)]
        threads = [threading.Thread(target=one.run, args=(stopping,)) for one in runners for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: {one.state for one in listed(database, endpoint)} == {"delivered"}, seconds=30)
        stopping.set()
        for thread in threads:
            thread.join()
    assert most == [1] and len(receiver.came) == 20
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 20


_SENDER = """
import sys
from services.core.db.database import Database
from services.core.settings import Settings
from tests import receiving
settings = receiving.to_this_machine(Settings.read())
receiving.runner(Database(settings.database_url, application="tests"), settings, "scheduler-killed").run_once()
"""


def test_a_sender_killed_before_it_records_has_lost_nothing(database, settings, environ):
    arrived, go_on = threading.Event(), threading.Event()

    def reply(handler):
        arrived.set()
        go_on.wait(20)
        answer(handler)

    with receiving.receiving(reply) as receiver:
        endpoint, secret = make(database, settings, receiver.url)
        for number in range(3):
            happen(database, "view.saved", f"view/{number}")
        derive(database)
        root = Path(__file__).parents[2]
        killed = subprocess.Popen([sys.executable, "-c", _SENDER], env=os.environ | environ, cwd=root)
        assert arrived.wait(30)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        go_on.set()
        runner(database, settings).run_once()
        assert len(receiver.came) == 1, "the lease of the one that was killed still holds"
        with database.begin_system() as connection:
            connection.execute(
                text("UPDATE leases SET expires_at = now() - interval '1 s' WHERE name LIKE 'webhook/%'")
            )
        runner(database, settings).run_once()
        found = [headers["webhook-id"] for headers, _ in receiver.came]
        assert len(found) == 4 and found[0] == found[1] and len(set(found)) == 3
        for headers, body in receiver.came:
            standardwebhooks.Webhook(secret).verify(body.decode(), headers)
    assert {one.state for one in listed(database, endpoint)} == {"delivered"}


def test_old_deliveries_go_with_their_tries(database, settings, receiver):
    endpoint, _ = make(database, settings, receiver.url)
    happen(database)
    derive(database)
    runner(database, settings).run_once()
    with database.begin_system() as connection:
        assert deliveries.forget(connection) == 0
        assert deliveries.forget(connection, days=0) == 1
        assert connection.execute(text("SELECT count(*) FROM webhook_tries")).scalar_one() == 0
    assert not listed(database, endpoint)


def test_a_test_message_is_sent_and_what_is_about_webhooks_is_told_to_none(database, settings, receiver):
    endpoint, _ = make(database, settings, receiver.url, events=["job.completed"])
    with database.begin(TENANT) as connection:
        deliveries.test(connection, endpoint)
    runner(database, settings).run_once()
    assert receiver.types == ["webhook.test"]
    assert derive(database) == 0
    make(database, settings, receiver.url)
    assert derive(database) == 0


def test_there_may_be_twenty(database, settings):
    for _ in range(endpoints.MOST):
        make(database, settings, "https://hooks.example/in")
    with pytest.raises(Conflict, match="20 webhooks"):
        make(database, settings, "https://hooks.example/in")
