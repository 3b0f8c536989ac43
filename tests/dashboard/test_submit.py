"""Submitting by hand: what is shown before, and what becomes of it."""

import ast
import dataclasses
import html
import io
import json
import re
import shlex
import tracemalloc
import zipfile
from collections.abc import Callable
from tempfile import TemporaryFile

import httpx
import openpyxl
import pyarrow as pa
import pytest
from playwright.sync_api import expect
from pyarrow import parquet

from services.cli import matrices, options
from services.core.fleet import models
from services.core.items import reading
from services.core.jobs.estimates import WorkTally
from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from services.dashboard import asked, commands
from services.dashboard.uploaded import Upload
from tests.dashboard.hostile import HOSTILE
from tests.pages import House, Tab

ROWS = [{"prompt": "a red mug", "custom_id": "m1", "n": 2}, {"prompt": "a teal hat", "custom_id": "m2", "n": 1}]


def send(house: House, path: str = "/submit", file: tuple[str, bytes] | None = None, **fields: str) -> httpx.Response:
    kind = fields.setdefault("kind", "prompt")
    form = house.browser.get(f"/submit?kind={kind}").text
    for name in ("csrf", "once"):
        fields.setdefault(name, re.findall(rf'name="{name}" value="(\w+)"', form)[-1])
    return house.browser.post(path, data=fields, files=None if file is None else {"file": file})


def requests(house: House, answer: httpx.Response) -> list[dict[str, object]]:
    """Of the job that the form made."""
    assert answer.status_code == 303, answer.text
    found = house.http.get(f"/v1{answer.headers['Location']}/requests").json()["data"]
    return sorted(found, key=lambda one: one["index"])


def problems(answer: httpx.Response) -> list[str]:
    listed = re.search(r'<ul class="problems">(.*?)</ul>', answer.text, re.DOTALL)
    assert listed, answer.text
    return [html.unescape(re.sub("<[^>]+>", "", one)).strip() for one in re.findall(r"<li>(.*?)</li>", listed[1])]


def lines(*rows: object) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def table(form: str) -> bytes:
    names, found = ["Prompt", "custom_id", "n"], io.BytesIO()
    cells = [list(row.values()) for row in ROWS]
    if form == "csv":
        return "\r\n".join(";".join(map(str, row)) for row in [names, *cells]).encode("utf-16")
    if form == "parquet":
        parquet.write_table(pa.table(dict(zip(names, zip(*cells, strict=True), strict=True))), found)
    else:
        book = openpyxl.Workbook()
        for row in [names, *cells]:
            book.active.append(row)
        book.save(found)
    return found.getvalue()


def test_a_prompt_becomes_a_job_with_all_that_was_filled_in(signed: House) -> None:
    given = {"n": "3", "size": "64x64", "seed": "7", "negative_prompt": "text", "output_format": "webp"}
    answer = send(signed, prompt="a red mug\r\non a floor", priority="high", labels='name=spring, "x=a, b"', **given)
    [request] = requests(signed, answer)
    found = signed.http.get(f"/v1{answer.headers['Location']}").json()
    images = signed.http.get(f"/v1{answer.headers['Location']}/images").json()["data"]
    assert [one["seed"] for one in images] == [7, 8, 9]
    assert (request["prompt"], request["n"]) == ("a red mug\non a floor", 3)
    assert (request["negative_prompt"], images[0]["output_format"]) == ("text", "webp")
    assert (found["priority"], found["labels"], found["counts"]["total"]) == (
        "high",
        {"name": "spring", "x": "a, b"},
        3,
    )


def test_a_template_shows_its_first_requests_and_its_cost_and_becomes_a_job(signed: House) -> None:
    form = {
        "kind": "template",
        "template": "a {colour} {thing}",
        "vary": 'colour = red, "dark, blue"\r\n\r\nthing: mug, hat\r\nsize = 64x64, 256x256',
        "n": "2",
    }
    before = signed.api.rows()
    page = send(signed, "/submit/preview", **form)
    assert page.status_code == 200 and signed.api.rows() == before
    assert "<dd>16<small>8 requests</small>" in page.text and "a dark, blue hat" in page.text
    found = requests(signed, send(signed, **form))
    assert [one["prompt"] for one in found][::2] == ["a red mug", "a red hat", "a dark, blue mug", "a dark, blue hat"]
    assert {one["n"] for one in found} == {2}


@pytest.mark.parametrize(("name", "how"), [
    ("p.jsonl", "JSON requests"), ("P.CSV", "semicolon-separated, UTF-16"), ("p.xlsx", "an Excel workbook"),
    ("p.parquet", "Parquet"), ("p.txt", "prompts, one a line"),
])  # fmt: skip
def test_a_file_is_read_as_the_command_reads_it(signed: House, name: str, how: str) -> None:
    form = name.lower().rpartition(".")[2]
    texts = {"jsonl": lines(*ROWS), "txt": lines(*(row["prompt"] for row in ROWS))}
    file = (name, texts.get(form) or table(form))
    before = signed.api.rows()
    page = send(signed, "/submit/preview", file, kind="file", size="64x64")
    assert signed.api.rows() == before
    assert how in html.unescape(page.text) and "a teal hat" in page.text
    found = requests(signed, send(signed, file=file, kind="file", size="64x64"))
    assert [one["prompt"] for one in found] == ["a red mug", "a teal hat"]
    if form != "txt":
        assert [(one["custom_id"], one["n"]) for one in found] == [("m1", 2), ("m2", 1)]


@pytest.mark.parametrize(("form", "sentences"), [
    ({"prompt": " "}, ['prompt is " "; it must be text of 1 to 2,000 characters, not only spaces.']),
    ({"prompt": "a", "n": "x", "seed": "-1"}, [
        "seed is -1; it must be a whole number from 0 to 9223372036854775807.",
        'n is "x"; it must be a whole number from 1 to 1,000.']),
    ({"prompt": "a", "labels": "spring"}, [
        "Labels holds 'spring'; it must be NAME=VALUE pairs, such as name=spring, for=shop."]),
    ({"prompt": "a", "size": "63x64"}, ['size is "63x64"; it must be one of: 64x64, 256x256, 512x512.']),
    ({"kind": "template", "template": "a {b}", "vary": "colour"}, [
        "Line 1 of what varies is no list: write NAME = A, B, such as colour = red, teal."]),
    ({"kind": "template", "template": "a {b}", "vary": "b = x,,y"}, [
        "b=x,,y has an empty value; it must be NAME=A,B,..."]),
    ({"kind": "template", "template": "a {b}", "vary": "c = x"}, [
        "The template names {b}, and vary has no such name; it has c."]),
    ({"kind": "file"}, ["Choose a file, or drop it here."]),
])  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_recorded(
    signed: House, form: dict[str, str], sentences: list[str]
) -> None:
    before = signed.api.rows()
    for path in ("/submit/preview", "/submit"):
        answer = send(signed, path, **form)
        assert answer.status_code == (422 if path == "/submit" else 200)
        assert problems(answer) == sentences
        assert all(html.escape(value, quote=True).replace("&#x27;", "&#39;") in answer.text for value in form.values())
    assert signed.api.rows() == before


@pytest.mark.parametrize(("file", "sentences"), [
    (("p.jsonl", lines(ROWS[0], {"prompt": ""}, "{", {"prompt": "b", "sise": 1})), [
        'Line 2: prompt is ""; it must be text of 1 to 2,000 characters, not only spaces.',
        "Line 3: The text is not JSON: expecting property name enclosed in double quotes at column 2.",
        'Line 4: There is no field "sise"; did you mean size?']),
    (("p.csv", b"caption,n\na,1\n"), [
        "p.csv has no column 'prompt'; did you mean under Columns prompt=caption? It has: caption, n."]),
    (("p.pdf", b"%PDF"), [
        f"p.pdf has none of the known endings ({', '.join(reading.EXTENSIONS)}); use one of them."]),
    *(((name, b"%PDF"), [
        f"{name} has none of the known endings ({', '.join(reading.EXTENSIONS)}); use one of them."])
      for name in ("tests", "..", "-", "\u1019" * 255)),  # what the server has of such a name is not looked at
    (("p.parquet", b"PAR1 and no more"), None),
    (("p.xlsx", b"PK\x03\x04 and no more"), None),
    (("p.jsonl", b'{"prompt": "' + b"x" * 70_000 + b'"}'), [
        "Line 1: The line is longer than 65,536 bytes, the limit for a line."]),
    (("p.jsonl", b""), None),
])  # fmt: skip
def test_a_file_that_is_wrong_says_where(signed: House, file: tuple[str, bytes], sentences: list[str] | None) -> None:
    before = signed.api.rows()
    for path in ("/submit/preview", "/submit"):
        found = problems(send(signed, path, file, kind="file"))
        assert found == sentences if sentences else len(found) == 1 and "Traceback" not in found[0]
        assert "/tmp" not in found[0] and "--" not in found[0]
    assert signed.api.rows() == before


def test_a_file_that_unpacks_to_more_than_is_read_is_refused_unread(signed: House) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as book, book.open("xl/sharedStrings.xml", "w") as part:
        for _ in range(300):
            part.write(bytes(1 << 20))
    [sentence] = problems(send(signed, file=("p.xlsx", packed.getvalue()), kind="file"))
    assert sentence == "p.xlsx is too large: 300 MB unpacked, and 256 MB are read here; `presswork submit` takes it."


def test_a_large_file_is_read_in_little_memory(signed: House) -> None:
    with signed.api.database.begin_system() as connection:
        registry = models.registry(connection)
    with (
        TemporaryFile() as file,
        WorkTally(signed.api.settings, registry, defaults={}) as tally,
    ):
        row = lines({"prompt": "a mug " * 100, "size": "64x64"}) + b"\n"
        for _ in range(10_000):
            file.write(row)
        tracemalloc.start()
        try:
            upload = Upload("p.jsonl", file, asked.read({"kind": "file"}), 2_000_000)
            upload.fill(tally)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert tally.requests == 10_000
    assert most < 10_000 * len(row) / 2


def test_a_form_that_is_sent_twice_makes_one_job(signed: House) -> None:
    first = send(signed, prompt="a mug", once="a1b2")
    assert send(signed, prompt="a mug", once="a1b2").headers["Location"] == first.headers["Location"]
    other = send(signed, prompt="a hat", once="a1b2")
    assert other.status_code == 422
    assert problems(other) == [
        "This form has made a job before, of other content. Send it once more to make another one."
    ]
    [fresh] = re.findall(r'name="once" value="(\w+)"', other.text)
    assert fresh != "a1b2"
    assert requests(signed, send(signed, prompt="a hat", once=fresh))[0]["prompt"] == "a hat"
    assert len(signed.http.get("/v1/jobs").json()["data"]) == 2


def test_a_key_that_may_not_submit_sees_no_entry_and_is_refused(signed: House) -> None:
    assert signed.browser.get("/").text.count('href="/submit"') == 2  # among the pages, and where there are no jobs yet
    with signed.api.database.begin_system() as connection:
        given = (Scope.VIEW, Scope.OPERATE)
        signed.key = api_keys.issue_key(connection, signed.api.settings.secret, signed.tenant, "guest", given=given)
    signed.browser.cookies.clear()
    signed.sign_in()
    assert "/submit" not in signed.browser.get("/").text
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', signed.browser.get("/").text))
    for path in ("/submit", "/submit/preview"):
        answer = signed.browser.post(path, data={"csrf": token, "kind": "prompt", "prompt": "a"})
        assert answer.status_code == 403 and "Not allowed" in answer.text
    assert signed.browser.get("/submit").status_code == 403


def test_a_form_of_another_site_and_a_kind_that_is_not_there_are_refused(signed: House) -> None:
    assert send(signed, prompt="a", csrf="0" * 64).status_code == 403
    assert send(signed, file=("p.jsonl", lines(*ROWS)), kind="file", csrf="0" * 64).status_code == 403
    assert signed.browser.get("/submit?kind=none").status_code == 400
    assert signed.http.get("/v1/jobs").json()["data"] == []


def test_the_same_by_curl_and_by_the_command_ask_for_the_same() -> None:
    form = {
        "kind": "template", "template": "it's a {colour} mug",
        "vary": 'colour = red, "dark, ""deep"" blue"\nseed = 1, 2',
        "n": "2", "labels": "name=it's, for=shop", "priority": "low", "dedupe": "true", "guidance_scale": "1.5",
        "in_shards": "true",
    }  # fmt: skip
    found = asked.read(form)
    curl, command, python = (text for _, text in commands.same("http://x", found, ""))
    assert json.loads(shlex.split(curl)[-1]) == found.body
    words = shlex.split(command)
    given = {name: words[at + 1] for at, name in enumerate(words) if name.startswith("--") and name != "--watch"}
    vary = options.pairs([words[at + 1] for at, name in enumerate(words) if name == "--vary"], "--vary")
    assert matrices.read(given["--matrix"], vary, None, None) == found.matrix
    assert (given["--priority"], given["--n"], given["--guidance"]) == ("low", "2", "1.5")
    assert given["--store"] == found.body["store"] == "shards"
    assert "--dedupe" in words and words.count("--label") == 2
    compile(python, "same.py", "exec")
    one = dataclasses.replace(found, kind="prompt", prompt="it's\na mug", matrix=None)
    assert json.loads(shlex.split(commands.same("http://x", one, "")[0][1])[-1]) == one.body


def test_a_prompt_is_looked_at_while_it_is_typed_and_submitted_by_keyboard(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab()
    tab.page.get_by_role("link", name="Submit", exact=True).press("Enter")
    page = tab.page
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a red mug")
    page.get_by_label("Images", exact=True).press_sequentially("5000")
    expect(page.locator("#preview")).to_contain_text("n is 5000; it must be a whole number from 1 to 1,000.")
    page.get_by_label("Images", exact=True).fill("4")
    expect(page.locator("#preview dd").first).to_contain_text("4")
    expect(page.locator("#preview pre").first).to_contain_text('"n": 4')
    assert tab.violations() == []
    page.get_by_role("button", name="Submit", exact=True).press("Enter")
    page.wait_for_url(re.compile("/jobs/job_"))
    assert tab.errors == []


def test_a_dropped_file_is_looked_at_and_submitted(house: House, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    page = tab.open("/submit?kind=file")
    page.evaluate(
        """(text) => {
          const data = new DataTransfer();
          data.items.add(new File([text], "mugs.jsonl"));
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        lines(*ROWS, {"prompt": ""}).decode(),
    )
    expect(page.locator("#preview")).to_contain_text("Line 3: prompt is")
    page.get_by_label("File", exact=True).set_input_files(
        {"name": "mugs.jsonl", "mimeType": "text/plain", "buffer": lines(*ROWS)}
    )
    expect(page.locator("#preview dd").first).to_contain_text("3")
    page.get_by_role("button", name="Submit", exact=True).dblclick()
    page.wait_for_url(re.compile("/jobs/job_"))
    assert len(house.http.get("/v1/jobs").json()["data"]) == 1
    assert tab.errors == []


_DROP = """([text, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name));
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def test_the_name_of_a_dropped_file_is_text_wherever_it_is_shown(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    page = tab.open("/submit?kind=file")
    for first in range(0, len(HOSTILE), 4):  # a name has no slash
        name = re.sub(r"[/\\\n]", ":", " ".join(HOSTILE[first : first + 4]))
        shown = "".join(letter for letter in name if letter.isprintable()).replace('"', "%22")  # as browsers write it
        if first % 8:
            page.evaluate(_DROP, [lines(*ROWS).decode(), f"{name}.jsonl"])
            expect(page.locator("#preview pre").nth(1)).to_contain_text(shlex.quote(f"{shown}.jsonl"))
        else:
            page.evaluate(_DROP, ["%PDF", name])
            expect(page.locator("#preview .problems")).to_contain_text(f"{shown} has none of the known endings")
    assert page.evaluate("window.hurt") is None
    assert tab.errors == []
    assert {httpx.URL(address).host for address in tab.requests} == {"127.0.0.1"}


@pytest.mark.parametrize("name", ["-", "-rf", "~", "~root", *HOSTILE])
def test_no_name_of_a_file_is_more_than_a_name_to_a_shell_or_to_python(name: str) -> None:
    curl, command, python = (text for _, text in commands.same("http://x", asked.read({"kind": "file"}), name))
    path = f"./{name}" if name[0] in "-~" else name
    assert shlex.split(curl, comments=True)[-1] == f"@{path}"
    assert shlex.split(command)[:3] == ["presswork", "submit", path]
    [call] = [one for one in ast.walk(ast.parse(python)) if isinstance(one, ast.Call) and one.args[1:] == []][-1:]
    assert ast.literal_eval(call.args[0]) == path
