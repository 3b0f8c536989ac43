"""Settings: each refusal is one sentence that names the variable, what was found and what would do."""

import dataclasses
import traceback
from urllib.parse import quote

import pytest
from sqlalchemy import make_url

from services.core import broker
from services.core.db.database import driver_url
from services.core.model.addresses import RedisAddress
from services.core.model.errors import SettingsError
from services.core.settings import Settings

BASE = {"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x"}


def test_only_the_database_and_redis_must_be_set():
    settings = Settings.read(BASE)
    assert settings.batch_sizes == (16, 8, 4, 1)
    assert settings.beat_seconds < settings.fence_seconds < settings.lease_seconds < settings.watchdog_seconds


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PRESSWORK_PORT", "http", "a whole number from 1 to 65535"),
        ("PRESSWORK_PORT", "70000", "a whole number from 1 to 65535"),
        ("PRESSWORK_LEASE_SECONDS", "nan", "a number from 1 to 3600"),
        ("PRESSWORK_LEASE_SECONDS", "0", "a number from 1 to 3600"),
        ("PRESSWORK_BATCH_SIZES", "16,8", "with 1 among them"),
        ("PRESSWORK_SIMULATED_FAULTS", "maybe", "it can be 1 or 0"),
        ("PRESSWORK_PIPELINE", "watercolour", "it can be onnx, torch, ai100 or simulated"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "it must begin with http:// or https://"),
        ("PRESSWORK_PREFIX", "shop/../prod", "it must be a folder such as shop/production"),
        ("PRESSWORK_PREFIX", "3f/prod", "it must not begin like the keys"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_found_and_what_would_do(variable, value, allowed):
    with pytest.raises(SettingsError) as refusal:
        Settings.read({**BASE, variable: value})
    for part in (variable, repr(value), allowed):
        assert part in str(refusal.value)


def test_a_prefix_ends_with_one_slash():
    for value, prefix in {"": "", "/": "", "shop": "shop/", "/shop/prod/": "shop/prod/"}.items():
        assert Settings.read({**BASE, "PRESSWORK_PREFIX": value}).prefix == prefix


@pytest.mark.parametrize(
    ("variable", "value"), [("DATABASE_URL", "db:hush@host/x"), ("REDIS_URL", "http://:hush@host")]
)
def test_a_bad_address_is_refused_without_a_word_of_its_password(variable, value):
    with pytest.raises(SettingsError, match=f"^{variable} is not understood; it must begin with") as refusal:
        Settings.read({**BASE, variable: value})
    assert "hush" not in str(refusal.value)


def test_a_database_address_that_the_driver_cannot_read_is_one_sentence():
    with pytest.raises(SettingsError, match=r"^DATABASE_URL is not understood; it must be of the form") as refusal:
        driver_url("postgresql://user:hush@host:port/x")
    assert "hush" not in str(refusal.value)


ADDRESSES = {
    "DATABASE_URL": "postgresql://{}@host:5432/x",
    "REDIS_URL": "redis://{}@host:6379/0",
    "AWS_ENDPOINT_URL": "http://{}@host:8333",
    "PRESSWORK_PUBLIC_URL": "https://{}@host",
}


@pytest.mark.parametrize("variable", ADDRESSES)
@pytest.mark.parametrize(
    "password", ["qz#xj", "qz/xj", "qz?xj", "qz@xj", "qz[xj", "qz%xj", "qz xj", "qz\txj", "80/qz#xj"]
)
def test_a_password_that_is_not_percent_encoded_is_refused_without_a_piece_of_it(variable, password):
    with pytest.raises(SettingsError, match=f"^{variable} is not understood; .*(percent-encoded|password)") as refusal:
        Settings.read({**BASE, variable: ADDRESSES[variable].format(f"user:{password}")})
    shown = "".join(traceback.format_exception(refusal.value))
    assert not any(part in shown for part in ("qz", "xj"))


@pytest.mark.parametrize("secret", ["#hush/ä? @%[]:;", "hush"])
def test_a_percent_encoded_password_reaches_every_client(secret):
    encoded = quote(secret, safe="")
    settings = Settings.read(
        {**BASE, **{name: ADDRESSES[name].format(f"user:{encoded}") for name in list(ADDRESSES)[:2]}}
    )
    assert make_url(driver_url(settings.database_url)).password == secret
    assert broker.redis_client(settings.redis_url).connection_pool.connection_kwargs["password"] == secret
    connection = broker.celery_app(settings.redis_url).connection_for_write()
    assert (connection.hostname, connection.port, connection.userid, connection.password) == (
        "host",
        6379,
        "user",
        secret,
    )
    assert "hush" not in repr(settings) + repr(RedisAddress.parse(settings.redis_url)) + connection.as_uri()


@pytest.mark.parametrize(
    ("variable", "value", "would_do"),
    [
        ("REDIS_URL", "redis://host:port/0", "its port must be a number from 1 to 65535"),
        ("REDIS_URL", "redis://host:70000/0", "its port must be a number from 1 to 65535"),
        ("REDIS_URL", "redis://host:6379/first", "the number of a database"),
        ("REDIS_URL", "redis://host?transport=memory", "after the question mark there can only be"),
        ("REDIS_URL", "rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs can be required, optional or none"),
        ("DATABASE_URL", "postgresql://host:port/x", "its port must be a number from 1 to 65535"),
        ("AWS_ENDPOINT_URL", "http://:80", "of the form http://host:port"),
        ("PRESSWORK_PUBLIC_URL", "https://host?x=1", "of the form https://host:port"),
    ],
)
def test_an_address_that_a_client_would_trip_over_is_refused_at_once(variable, value, would_do):
    with pytest.raises(SettingsError, match=would_do):
        Settings.read({**BASE, variable: value})


def test_addresses_may_leave_out_what_has_a_default():
    local = RedisAddress.parse("redis://")
    assert (local.host, local.port, local.db, local.password, local.tls) == ("127.0.0.1", 6379, 0, None, None)
    assert str(RedisAddress.parse("rediss://[::1]/3")) == "[::1]:6379"
    assert RedisAddress.parse("rediss://host").tls == {"ssl_cert_reqs": "required"}
    Settings.read(
        {**BASE, "DATABASE_URL": "postgresql:///x?host=/run/postgresql", "AWS_ENDPOINT_URL": "http://[::1]:9/"}
    )


def test_a_missing_variable_is_named():
    with pytest.raises(SettingsError, match="DATABASE_URL is not set"):
        Settings.read({})


def test_a_secret_may_stand_in_a_file(tmp_path):
    (tmp_path / "secret").write_text("hush\n")
    assert Settings.read({**BASE, "PRESSWORK_SECRET_FILE": str(tmp_path / "secret")}).secret == "hush"
    with pytest.raises(SettingsError, match="PRESSWORK_SECRET_FILE names"):
        Settings.read({**BASE, "PRESSWORK_SECRET_FILE": str(tmp_path / "none")})
    (tmp_path / "secret").write_bytes(b"hush\xff")
    with pytest.raises(SettingsError, match="it is not UTF-8 text"):
        Settings.read({**BASE, "PRESSWORK_SECRET_FILE": str(tmp_path / "secret")})


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.read(BASE).port = 1  # type: ignore[misc]


def test_what_others_wrote_gets_no_secret_of_programs_or_commands():
    given = {
        "DATABASE_URL": "a", "PRESSWORK_SECRET_FILE": "a", "AWS_SECRET_ACCESS_KEY": "a", "PRESSWORK_API_KEY": "a",
        "PRESSWORK_MIGRATOR_URL": "a", "PGPASSWORD": "a", "PATH": "/bin", "PRESSWORK_POLICY_SECONDS": "3", "MODEL": "b",
    }  # fmt: skip
    assert sorted(Settings.without_secrets(given)) == ["MODEL", "PATH", "PRESSWORK_POLICY_SECONDS"]
