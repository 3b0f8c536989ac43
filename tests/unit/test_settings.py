"""Settings: each refusal is one sentence that names the variable, what was found and what would do."""

import dataclasses

import pytest

from services.core.db.database import driver_url
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
        ("PRESSWORK_PIPELINE", "watercolour", "it can be onnx, torch or simulated"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "it must begin with http:// or https://"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_found_and_what_would_do(variable, value, allowed):
    with pytest.raises(SettingsError) as refusal:
        Settings.read({**BASE, variable: value})
    for part in (variable, repr(value), allowed):
        assert part in str(refusal.value)


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


def test_a_missing_variable_is_named():
    with pytest.raises(SettingsError, match="DATABASE_URL is not set"):
        Settings.read({})


def test_a_secret_may_stand_in_a_file(tmp_path):
    (tmp_path / "secret").write_text("hush\n")
    assert Settings.read({**BASE, "PRESSWORK_SECRET_FILE": str(tmp_path / "secret")}).secret == "hush"
    with pytest.raises(SettingsError, match="PRESSWORK_SECRET_FILE names"):
        Settings.read({**BASE, "PRESSWORK_SECRET_FILE": str(tmp_path / "none")})


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.read(BASE).port = 1  # type: ignore[misc]
