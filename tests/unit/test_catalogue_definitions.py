"""What a catalogue may be: every refusal is one sentence that names the field."""

import copy
import json
from typing import Any

import jsonschema
import pytest

from services.core.catalogues import definition, definition_file
from services.core.catalogues.definition_file import BadFile

SHOP = """
[catalogue.shop]
source   = { url = "https://shop.example/feed.csv" }
id       = "sku"
seed     = "by-id"
schedule = { cron = "0 1 * * *", timezone = "Europe/Berlin", deadline = "06:00" }
publish  = { atomic = true, require = 0.98, review = "changed" }
keep     = 14
[catalogue.shop.variants.front]
prompt = "a {{ colour }} {{ title }} on white"
size   = "512x512"
[catalogue.shop.variants.lifestyle]
prompt = "a {{ colour }} {{ title }} on a wooden table"
when   = "stock > 0"
seed   = 7
"""


def shop(**changes: Any) -> Any:
    found = copy.deepcopy(definition_file.read("shop.toml", SHOP.encode())["shop"])
    return found | changes


def said(**changes: Any) -> list[str]:
    found, problems = definition.read("shop", shop(**changes))
    assert (found is None) == bool(problems)
    return [problem.message for problem in problems]


def test_a_file_is_read_alike_in_each_language_and_follows_the_schema() -> None:
    whole = {"catalogue": {"shop": shop()}}
    found, problems = definition.read("shop", shop())
    assert found is not None and not problems
    assert (found.keep, found.publish.require, found.schedule.deadline) == (14, 0.98, "06:00")
    assert [found.seed_of(variant) for variant in found.variants.values()] == ["by-id", 7]
    yaml = """
catalogue:
  shop: {source: {url: "https://shop.example/feed.csv"}, id: sku, keep: 14, variants: {front: {prompt: a mug}}}
"""
    assert definition_file.read("shop.yaml", yaml.encode())["shop"]["keep"] == 14
    assert definition_file.read("shop.json", json.dumps(whole).encode()) == whole["catalogue"]
    schema = definition.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(whole, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"catalogue": {"shop": shop(keep=0)}}, schema)
    with_nulls = shop(schedule=None, model=None, variants={"front": {"prompt": "a mug", "size": None, "when": None}})
    assert definition.read("shop", with_nulls)[1] == []
    assert definition.Definition.model_validate(found.model_dump()) == found, "as it is stored"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"publish": {"to": {}}}, "publish.to.s3 is missing; it must be a bucket and a folder"),
        ({"publish": {"to": {"s3": "shop/../x"}}}, 'publish.to.s3 is "shop/../x"; it must be a bucket and a folder'),
        ({"publish": {"to": {"s3": "shop//x"}}}, 'publish.to.s3 is "shop//x"; it must be a bucket and a folder'),
        ({"publish": {"to": {"s3": "shop", "name": "{{ item }"}}}, "publish.to.name: It is not valid Liquid"),
        (
            {"publish": {"to": {"s3": "shop", "name": "{{ title }}-{{ item }}"}}},
            "publish.to.name: there is no field title; there are item, variant, sha256, extension.",
        ),
        (
            {"publish": {"to": {"s3": "shop", "name": "{{ item }}.png"}}},
            "publish.to.name lacks {{ variant }}; each picture needs a name of its own.",
        ),
        ({"publish": {"to": {"s3": "shop", "name": "/{{ item }}{{ variant }}"}}}, "publish.to.name: The name is"),
        ({"sourc": 1}, 'There is no field "sourc" in a catalogue; did you mean source?'),
        ({"source": {}}, "source has none of url, file and s3; it must have exactly one of them."),
        ({"source": {"url": "x", "s3": "abc/d"}}, "source has url and s3; it must have exactly one of them."),
        ({"source": {"url": "https://a.example/b"}}, "source.format is missing, and source.url has none of the known"),
        ({"source": {"s3": "nokey"}}, 'source.s3 is "nokey"; it must be a bucket and a key'),
        (
            {"source": {"file": "f", "encoding": "utf-99"}},
            'source.encoding is "utf-99"; it must be an encoding such as',
        ),
        ({"source": {"file": "f", "delimiter": "ab"}}, 'source.delimiter is "ab"; it must be one character'),
        ({"id": None}, "id is null; it must be the name of the column that identifies an item."),
        ({"seed": True}, 'seed is true; it must be "by-id", or a whole number from 0'),
        ({"schedule": {"cron": "0 1 * * *", "timezone": "Mars/Phobos"}}, 'schedule.timezone is "Mars/Phobos"; it must'),
        ({"schedule": {"cron": "0 1 * * *", "timezone": "../../etc/localtime"}}, "schedule.timezone is"),
        (
            {"schedule": {"cron": "0 1 * * *", "deadline": 750}},
            "schedule.deadline is 750; it must be a time of day in q",
        ),
        ({"schedule": {}}, "schedule.cron is missing; it must be a cron expression"),
        ({"publish": {"require": 98}}, "publish.require is 98; it must be a number from 0 to 1"),
        ({"publish": {"atomic": False}}, "publish.atomic is false; it must be true"),
        ({"reproducibility_class": "16"}, 'reproducibility_class is "16"; it must be a class as GET /v1/models'),
        (
            {"variants": {"a": {"prompt": "x", "reproducibility_class": "16"}}},
            'variants.a.reproducibility_class is "16"; it must be a class as',
        ),
        ({"keep": 0}, "keep is 0; it must be a whole number from 1 to 1,000"),
        ({"removed_limit": "x"}, 'removed_limit is "x"; it must be a number from 0 to 1'),
        ({"variants": {}}, "variants is empty; it must be an object of 1 to 32 variants"),
        ({"variants": {"A b": {"prompt": "x"}}}, 'variants has the name "A b"; a name must be 1 to 64 of a-z'),
        ({"variants": {"a": {}}}, "variants.a.prompt is missing; it must be a template"),
        ({"variants": {"a": 3}}, "variants.a is 3; it must be an object with a prompt."),
        ({"variants": {"a": {"prompt": "x", "sise": 1}}}, 'There is no field "sise" in variants.a; did you mean size?'),
        ({"variants": {"a": {"prompt": "{{ x"}}}, "variants.a.prompt: It is not valid Liquid: expected '}}'"),
        ({"variants": {"a": {"prompt": "{{ x | date }}"}}}, 'variants.a.prompt: There is no filter "date".'),
        (
            {"variants": {"a": {"prompt": "x", "when": "a >"}}},
            "variants.a.when: It is not valid Liquid: expected a pri",
        ),
        ({"variants": {"a": {"prompt": "x", "size": "big"}}}, 'variants.a.size is "big"; it must be width and height'),
        ({"variants": {"a": {"prompt": "x", "output_compression": 5}}}, "variants.a.output_compression is 5; it must"),
        ({"variants": {"a": {"prompt": "x", "image": "{{ x"}}}, "variants.a.image: It is not valid Liquid: expected"),
        ({"variants": {"a": {"prompt": "x", "image": 3}}}, "variants.a.image is 3; it must be a template that gives"),
        ({"variants": {"a": {"prompt": "x", "strength": 0.5}}}, "variants.a.strength needs an image beside it."),
        (
            {"variants": {"a": {"prompt": "x", "image": "{{ x }}", "strength": 2}}},
            "variants.a.strength is 2; it must be a number above 0 and at most 1",
        ),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_field(changes: Any, sentence: str) -> None:
    [found] = said(**changes)
    assert found.startswith(sentence)


def test_a_name_that_could_be_a_path_and_a_list_in_place_of_an_object_are_refused() -> None:
    assert definition.read("../shop", shop())[1][0].code == "invalid_name"
    assert definition.read("shop", [])[1][0].message.startswith("The catalogue is a list; it must be an object")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("shop.ini", b"", "has none of the known endings"),
        ("shop.toml", b"[catalogue", "shop.toml: .* at line 1|end of document"),
        ("shop.toml", b"\xff", "is not UTF-8"),
        ("shop.toml", b"x = 1", "must hold one or more catalogues"),
        ("shop.json", b'{"catalogue": {"a": {}, "a": {}}}', "appears twice"),
        ("shop.yaml", b"catalogue: {a: &x [1], b: *x}", "an alias is not allowed here at line 1, column 27"),
        ("shop.yaml", b"catalogue: {a: 1, a: 2}", "a key stands twice"),
        ("shop.yaml", b"catalogue: [", "It is not the YAML"),
        ("shop.yaml", b"catalogue: !!python/object:os.system {}", "It is not the YAML"),
        ("shop.yaml", b" " * ((1 << 20) + 1), "1,048,576 are allowed"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_place(name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(BadFile, match=sentence):
        definition_file.read(name, content)
