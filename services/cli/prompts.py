"""`presswork prompts`: builds prompts from a template and lists of values, to be looked at, kept and submitted."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from services.cli import follow, options, show, units
from services.cli.exits import BadInput, Exit, Interrupted, Usage, guarded
from services.cli.matrices import file_of_values
from services.core import extras
from services.core.items import matrices, recipe_values, recipes
from services.core.items.recipes import Expansion, Recipe, Render
from services.core.model import strict_json

_FIRST = 5  # prompts of a preview
_VALUES = 8  # of each name, in the table of the balance


def add_to(app: typer.Typer, panel: str) -> None:
    """Registers the command of this file."""
    app.command("prompts", rich_help_panel=panel)(guarded(prompts))


def prompts(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="TEMPLATE|RECIPE", help='A template such as "a {colour} {animal}", or a .toml or .json file.'
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="A name's values: red,3::teal (three times as likely), or @FILE with one a line. May be repeated.",
            show_default=False,
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative-template", metavar="TEMPLATE", help="A template of the negative prompt.", show_default=False
        ),
    ] = None,
    liquid: Annotated[
        bool, typer.Option("--liquid", help="The template is Liquid, as in catalogues: {{ colour }}, {% if %}.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT", min=1, help="Draw that many different prompts; else all are made.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", min=0, help="Decides what is drawn; 0 by default.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write them there as JSONL, and the recipe beside it."),
    ] = None,
) -> Exit:
    """Build prompts from a template and lists of values.

    On a terminal it shows the first ones and how often each value occurs. With -o, or into a pipe, it writes them as
    lines for `presswork submit`, each with its values as metadata. The same recipe gives the same prompts.
    """
    found = _recipe(recipe, vary or [], negative, liquid, sample, seed)
    if output is not None:
        return _write(found, output)
    if not sys.stdout.isatty():
        return _pipe(found)
    seen = Expansion()
    first: list[dict[str, Any]] = []
    for request in _progress(_requests(found, seen), found):
        if len(first) < _FIRST:
            first.append(request)
    _show(found, seen, first)
    show.say(f"-o FILE writes them; the recipe is {found.digest}", style="dim")
    return Exit.OK


def _recipe(
    given: str, vary: list[str], negative: str | None, liquid: bool, sample: int | None, seed: int | None
) -> Recipe:
    """Options replace fields of the file. Raises Usage, BadInput and WrongOption."""
    whole: dict[str, Any] = {"template": given}
    folder = Path()
    if given.lower().endswith((".toml", ".json")):
        whole, folder = _of_file(Path(given)), Path(given).parent
    more = {"negative_template": negative, "liquid": liquid or None, "sample": sample, "seed": seed}
    whole |= {name: value for name, value in more.items() if value is not None}
    lists = {
        name: recipe_values.of_words(
            name, text, [] if text.startswith("@") else matrices.values(name, text), file_of_values
        )
        for name, text in options.pairs(vary, "--vary").items()
    }
    listed = whole.get("vary", {})
    if isinstance(listed, dict):
        whole["vary"] = {**listed, **{name: values.as_json() for name, values in lists.items()}}
        if not whole["vary"]:
            raise Usage("Nothing varies: --vary NAME=A,B or --vary NAME=@FILE gives a name of the template its values.")
    return recipes.read(whole, lambda name: file_of_values(folder / name), given)


def _of_file(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        content = path.read_bytes().removeprefix(strict_json.BYTE_ORDER_MARK)
        found = tomllib.loads(content.decode()) if path.suffix.lower() == ".toml" else strict_json.loads(content)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8: byte {error.start} is invalid.", []) from None
    except (tomllib.TOMLDecodeError, strict_json.BadJson) as error:
        raise BadInput(f"{path}: {str(error).rstrip('.')}.", []) from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is {strict_json.describe(found)}; a recipe is an object with template and vary.", [])
    return found


def _requests(recipe: Recipe, seen: Expansion) -> Iterator[dict[str, Any]]:
    return recipe.requests(_liquid if recipe.liquid else recipes.names, seen)


def _liquid(source: str) -> tuple[Render, frozenset[str]]:
    extras.require("web", what="A template in Liquid")
    from services.core.catalogues import templates

    try:
        template = templates.Template(source)
    except templates.BadTemplate as error:
        raise BadInput(f"The template: {error}", []) from None

    def render(chosen: Mapping[str, Any]) -> str:
        try:
            return template.render(chosen)
        except templates.Inapplicable as error:
            raise BadInput(f"With {_shown(chosen)}: {error}", []) from None

    return render, template.fields


def _pipe(recipe: Recipe) -> Exit:
    """Writes the requests to stdout once they are whole: what reads them must not take a part for all."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        for request in _requests(recipe, Expansion()):
            file.write(_line(request))
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout)
    sys.stdout.flush()
    return Exit.OK


def _write(recipe: Recipe, output: Path) -> Exit:
    """Writes the requests and, beside them, the recipe; neither is there before it is whole."""
    unfinished, seen = output.with_name(f".{output.name}.part"), Expansion()
    first: list[dict[str, Any]] = []
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for request in _progress(_requests(recipe, seen), recipe):
                if len(first) < _FIRST:
                    first.append(request)
                file.write(_line(request))
        kept = output.with_name(f"{output.stem}.recipe.json")
        kept.write_text(json.dumps(recipe.as_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(output)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} is as it was") from None
    finally:
        unfinished.unlink(missing_ok=True)
    _show(recipe, seen, first)
    show.say(f"{output} has them, and {kept} the recipe; the next step:")
    show.say(f"  presswork submit {output} --label recipe={recipe.digest}")
    return Exit.OK


def _progress(made: Iterator[dict[str, Any]], recipe: Recipe) -> Iterator[dict[str, Any]]:
    total = recipe.combinations if recipe.sample is None else recipe.sample
    with follow.bar() as progress:
        task = progress.add_task("building", total=total, tail="")
        while some := list(islice(made, 1000)):
            yield from some
            progress.advance(task, len(some))


def _show(recipe: Recipe, seen: Expansion, first: list[dict[str, Any]]) -> None:
    """The first prompts, and how often each value occurs, on stderr."""
    of = f" of {recipe.combinations:,} combinations" if recipe.sample is not None else ""
    again = f" ({seen.repeated:,} were made twice, and are left out)" if seen.repeated else ""
    show.say(f"{units.count(seen.made, 'prompt')}{of}{again}; the first:")
    for request in first:
        show.err().print(Text(f"  {request['prompt']}"))
    show.err().print(_balance(seen))


def _balance(seen: Expansion) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column("NAME", no_wrap=True)
    table.add_column("VALUE", overflow="fold", ratio=1)
    table.add_column("PROMPTS", justify="right", no_wrap=True)
    table.add_column("SHARE", justify="right", no_wrap=True)
    for name, counts in seen.values.items():
        common = counts.most_common()
        shown = common if len(common) <= _VALUES else common[: _VALUES - 1]
        for number, (value, count) in enumerate(shown):
            share = f"{100 * count / max(seen.made, 1):.1f} %"
            table.add_row(name if number == 0 else "", Text(value or "(empty)"), f"{count:,}", share)
        if len(common) > len(shown):
            rest = common[len(shown) :]
            least, most = f"{rest[-1][1]:,}", f"{rest[0][1]:,}"
            each = most if least == most else f"{least} to {most}"
            table.add_row("", Text(f"and {len(rest):,} others, {each} each", style="dim"))
    return table


def _line(request: Mapping[str, Any]) -> str:
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")) + "\n"


def _shown(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in chosen.items())[:300]
