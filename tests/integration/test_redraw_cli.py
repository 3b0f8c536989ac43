"""`presswork submit` uploads the pictures that it names, each once."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from tests.web import Api


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (red, 20, 40)).save(file, "PNG")
    return file.getvalue()


def test_the_command_uploads_the_pictures_that_it_names(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    table = "prompt,image,strength\none,a.png,0.5\ntwo,b.png,1\nthree,a.png,0.3\n"

    def submitted(*words: str, stdin: str) -> list[tuple[str, str, float]]:
        ran = CliRunner().invoke(app, ["submit", *words, "--size", "64x64"], input=stdin)
        assert ran.exit_code == 0, ran.output
        with api.database.begin_system() as connection:
            rows = connection.execute(text(
                "SELECT encode(image_sha256, 'hex'), image, strength FROM payloads "
                "WHERE job_id = (SELECT max(id) FROM jobs) ORDER BY index"
            ))  # fmt: skip
            return [(row[0], row[1], row[2]) for row in rows]

    first, second = (hashlib.sha256(picture(red)).hexdigest() for red in (1, 2))
    (tmp_path / "table.csv").write_text(table)
    rows = submitted("table.csv", stdin="")
    assert [(sha256, strength) for sha256, _, strength in rows] == [(first, 0.5), (second, 1.0), (first, 0.3)]
    assert rows[0][1] == rows[2][1]  # uploaded once
    assert [row[0] for row in submitted("-", "--image", "b.png", "--strength", "0.4", stdin="a\nb\n")] == [second] * 2
    ran = CliRunner().invoke(app, ["submit", "table.csv", "--dry-run", "--size", "64x64"])
    assert ran.exit_code == 0, ran.output
    assert len(api.http.get("/v1/files?purpose=vision").json()["data"]) == 3  # it uploads nothing
    matrix = submitted("--matrix", "a {c} mug", "--vary", "c=red,teal", "--image", rows[0][1], stdin="")
    assert [row[0] for row in matrix] == [first] * 2
    varied = submitted(
        "--matrix", "a mug", "--vary", f"image=a.png,{rows[1][1]}", "--vary", "strength=0.3,0.6", stdin=""
    )
    assert [(row[0], row[2]) for row in varied] == [(first, 0.3), (first, 0.6), (second, 0.3), (second, 0.6)]
    (tmp_path / "cat").write_bytes(picture(1))
    for name in ("template", "negative_template"):  # where one uses the name, its values are words
        grid = {"template": "a mug", "vary": {"image": ["cat", "dog"]}} | {name: "an {image}"}
        (tmp_path / "grid.json").write_text(json.dumps(grid))
        assert [row[1] for row in submitted("--matrix", "grid.json", stdin="")] == [None, None]
    for words, said in (
        (["submit", "--matrix", "a mug", "--vary", "image=none.png"], "--image is 'none.png'; it must be a file"),
        (["submit", "-", "--image", "none.png"], "--image is 'none.png'; it must be a file"),
        (["submit", "table.csv"], "no such file"),
    ):
        (tmp_path / "table.csv").write_text(table + "four,c.png,0.5\n")
        ran = CliRunner().invoke(app, words, input="a\n")
        assert ran.exit_code in (2, 5)
        assert said in ran.output.replace("\n", " ")
