"""What a run of a catalogue has to do, from two files of items: real files and real lists, no server."""

import datetime as dt
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.core.catalogues import definition, expansion, list_writer, planning, version_list
from services.core.catalogues.list_writer import Plan
from services.core.catalogues.photographs import Found, Photograph, Wanted
from services.core.catalogues.planning import BadSource, TooSlow
from services.core.catalogues.templates import Inapplicable
from services.core.fleet.models import Model, Registry
from services.core.items.records import ItemFile

FRONT = {"prompt": "a {{ colour }} {{ title }} on white"}
TABLE = {"prompt": "a {{ title }} on a table", "when": "stock > 0"}
HEAD = "sku,title,colour,stock,note\n"
FEED = [f"{number},mug {number},red,{number % 4},x" for number in range(1, 21)]


REDRAWN = {"prompt": "a {{ title }}", "image": "{{ note }}", "strength": 0.5}


class Shop:
    """One catalogue with the lists of its versions, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.given: dict[str, Any] = {
            "source": {"file": "f"},
            "id": "sku",
            "variants": {"front": FRONT, "table": TABLE},
        }
        self.revision, self.steps = "first", 10
        self.photographs: dict[str, bytes] = {}  # by name; others cannot be had
        self.slow: set[str] = set()  # those that are found only when nothing else is left
        self.asked: dict[str, Wanted] = {}  # of the last plan
        self.looks: list[list[str]] = []  # of the last plan, what was asked for together

    def run(self, rows: Iterable[str], *, afresh: bool = False, head: str = HEAD, **changes: Any) -> Plan:
        """The plan of the next version, against the one before, or against none."""
        self.given |= changes
        found, problems = definition.read("shop", self.given)
        assert found is not None, problems
        now = dt.datetime.now(dt.UTC)
        served = {(64, 64): 50, (128, 64): 50}
        model = Model("mini", self.revision, (64, 64), self.steps, 7.5, served, now, redraws=True)
        variants, problems = expansion.compile_variants("shop", found, Registry(mini=model), "mini")
        assert not problems
        feed = self.folder / "feed.csv"
        feed.write_text(head + "".join(f"{row}\n" for row in rows))
        file = ItemFile(path=feed, form="csv", wanted=expansion.fields(found, variants))
        previous = None if afresh or not self.number else self.latest()
        target = self.folder / ("afresh" if afresh else str(self.number + 1))
        self.asked, self.looks = {}, []
        plan = planning.make(
            found, variants, file.items(), unit=file.unit, previous=previous, path=target, find=self.find
        )
        self.number += not afresh
        return plan

    def find(self, wanted: Mapping[str, Wanted], left: int) -> dict[str, Found]:
        self.asked |= wanted
        self.looks.append(sorted(wanted))
        missing = Inapplicable("image_not_fetched", "There is none.")
        wanted = {name: one for name, one in wanted.items() if not left or name not in self.slow}
        return {
            name: Photograph("file-1" if one.is_drawn else "", self.photographs[name], "etag")
            if name in self.photographs
            else missing
            for name, one in wanted.items()
        }

    def latest(self) -> Path:
        return self.folder / str(self.number)

    def changes(self, *kinds: str) -> list[tuple[str, str]]:
        return [(entry.item, entry.variant) for entry in version_list.entries(self.latest(), *kinds)]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def edited(rows: list[str], number: int, old: str, new: str) -> list[str]:
    return [row.replace(old, new) if row.startswith(f"{number},") else row for row in rows]


def test_a_run_draws_what_is_new_or_changed_and_keeps_the_rest(shop: Shop) -> None:
    assert shop.run(FEED).pictures == {"new": 35, "removed": 0}, "four items in five have stock"
    assert shop.run(reversed(FEED)).pictures == {"unchanged": 35, "removed": 0}, "whatever the order"
    assert shop.run(row.replace(",x", ",y") for row in FEED).pictures == {"unchanged": 35, "removed": 0}, (
        "no field used"
    )
    rows = edited(edited(FEED, 7, "red", "teal"), 9, "mug", "cup")
    rows = [*edited(rows, 10, ",2,", ",0,"), "21,bowl,red,1,x"]
    plan = shop.run([row for row in rows if not row.startswith("20,")])
    assert plan.pictures == {"new": 2, "changed": 3, "unchanged": 30, "removed": 2}
    assert (plan.items, plan.items_before, plan.items_removed, plan.doubt) == (20, 20, 1, "")
    assert shop.changes("changed") == [("7", "front"), ("9", "front"), ("9", "table")]
    assert shop.changes("new") == [("21", "front"), ("21", "table")]
    assert list(version_list.removed(shop.latest())) == [("10", "table"), ("20", "front")]


def test_what_is_kept_without_looking_is_what_a_fresh_look_gives(shop: Shop) -> None:
    shop.run(FEED)
    rows = [*edited(FEED, 7, "red", "teal"), "21,bowl,red,1,x"]
    shop.run(rows)
    kept = [
        (entry.item, entry.variant, entry.render_key, entry.request) for entry in version_list.entries(shop.latest())
    ]
    shop.run(rows, afresh=True)
    fresh = version_list.entries(shop.folder / "afresh")
    assert kept == [(entry.item, entry.variant, entry.render_key, entry.request) for entry in fresh]


def test_a_changed_photograph_is_redrawn_and_an_unchanged_one_is_only_asked_for(shop: Shop) -> None:
    rows = [row.replace(",x", f",photo-{number % 3}") for number, row in enumerate(FEED)]
    shop.photographs = {f"photo-{number}": bytes([number]) * 32 for number in range(3)}
    assert shop.run(rows, variants={"front": REDRAWN, "table": TABLE}).pictures == {"new": 35, "removed": 0}
    assert {one.is_drawn for one in shop.asked.values()} == {True}
    [entry] = [one for one in version_list.entries(shop.latest()) if (one.item, one.variant) == ("7", "front")]
    assert (entry.request["image"], entry.shape.first_step) == ("file-1", 6)
    assert shop.run(rows).pictures == {"unchanged": 35, "removed": 0}
    assert {(one.is_drawn, one.known and one.known.etag) for one in shop.asked.values()} == {(False, "etag")}
    shop.photographs["photo-0"] = b"9" * 32
    plan = shop.run(edited(rows, 2, "mug", "cup"))
    assert (plan.pictures, shop.asked["photo-1"].is_drawn) == ({"changed": 9, "unchanged": 26, "removed": 0}, True)
    shop.run(edited(rows, 2, "mug", "cup"), afresh=True)
    both = [
        [(one.item, one.variant, one.render_key) for one in version_list.entries(shop.folder / name)]
        for name in ("afresh", str(shop.number))
    ]
    assert both[0] == both[1], "what is kept without looking is what a fresh look gives"
    version_list.mark_failed(shop.latest(), iter([("7", "front")]))
    assert shop.run(edited(rows, 2, "mug", "cup")).pictures == {"retried": 1, "unchanged": 34, "removed": 0}
    assert shop.asked["photo-0"].is_drawn, "it is drawn again"
    del shop.photographs["photo-2"]
    plan = shop.run(edited(rows, 2, "mug", "cup"))
    assert plan.pictures == {"broken": 6, "unchanged": 29, "removed": 0}
    shop.photographs["photo-2"] = bytes([2]) * 32
    assert shop.run(edited(rows, 2, "mug", "cup")).pictures == {"unchanged": 35, "removed": 0}
    assert shop.asked["photo-2"].known is not None, "what its server said is not forgotten"
    plan = shop.run(edited(rows, 2, "mug", "cup"), variants={"front": REDRAWN | {"strength": 0.8}, "table": TABLE})
    assert plan.pictures == {"changed": 20, "unchanged": 15, "removed": 0}


def test_photographs_that_take_long_hold_up_their_own_items_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row.replace(",x", f",photo-{number // 2}") for number, row in enumerate(FEED)]
    shop.photographs = {f"photo-{number}": bytes([number]) * 32 for number in range(10)}
    quick = shop.run(rows, variants={"front": REDRAWN})
    found = list(version_list.entries(shop.latest()))
    monkeypatch.setattr(list_writer, "TOGETHER", 4)
    shop.number, shop.slow = 0, {"photo-0", "photo-3"}
    slow = shop.run(rows)
    assert (slow.pictures, slow.items) == (quick.pictures, quick.items)
    assert list(version_list.entries(shop.latest())) == found
    assert [len(names) for names in shop.looks] == [2, 3, 4, 4, 4, 2]
    monkeypatch.setattr(list_writer, "_MOST_WAITING", 5)  # so many are waited for
    shop.number = 0
    shop.run(rows)
    assert list(version_list.entries(shop.latest())) == found
    assert [len(names) for names in shop.looks] == [2, 3, 2, 2, 2]


def test_a_list_of_an_earlier_release_is_taken_up_and_variants_say_what_they_said(shop: Shop) -> None:
    shop.run(FEED)
    with closing(sqlite3.connect(shop.latest())) as connection:
        for table in ("first_steps", "inputs", "photographs"):
            connection.execute(f"DROP TABLE {table}")
        [digest] = connection.execute("SELECT digest FROM variants WHERE name = 'front'").fetchone()
    assert digest.hex() == "e7196bf04a70ce9f463db04955f44eb1", "else every item is looked at anew after an upgrade"
    assert shop.run(FEED).pictures == {"unchanged": 35, "removed": 0}


def test_an_edited_variant_is_drawn_anew_and_the_others_are_not(shop: Shop) -> None:
    shop.run(FEED)
    same = {"prompt": "a {{ title }} {{ '' }}on a table", "when": "stock > 0 and true"}
    assert shop.run(FEED, variants={"front": FRONT, "table": same}).pictures == {"unchanged": 35, "removed": 0}
    plan = shop.run(FEED, variants={"front": FRONT | {"size": "128x64"}, "table": same})
    assert plan.pictures == {"changed": 20, "unchanged": 15, "removed": 0}
    plan = shop.run(FEED, variants={"side": FRONT, "front": FRONT | {"size": "128x64"}})
    assert plan.pictures == {"new": 20, "unchanged": 20, "removed": 15}
    assert shop.run(FEED, variants={"side": FRONT, "table": same}).pictures == {
        "new": 15,
        "unchanged": 20,
        "removed": 20,
    }


def test_the_same_product_keeps_its_look_and_a_redraw_changes_it_for_good(shop: Shop) -> None:
    def seeds() -> dict[tuple[str, str], int]:
        return {(entry.item, entry.variant): entry.seed for entry in version_list.entries(shop.latest())}

    shop.run(FEED)
    first = seeds()
    assert len(set(first.values())) == 35 and max(first.values()) < 2**32
    assert first["7", "front"] == 1836136137, "seeds are the same in every release"
    shop.run(edited(FEED, 7, "red", "teal"))
    assert seeds() == first
    version_list.redraw(shop.latest(), iter([("7", "front")]))
    assert shop.run(edited(FEED, 7, "red", "teal")).pictures == {"changed": 1, "unchanged": 34, "removed": 0}
    again = seeds()
    assert again["7", "front"] != first["7", "front"] and again["7", "table"] == first["7", "table"]
    shop.run(edited(FEED, 7, "red", "blue"))
    assert seeds() == again
    shop.run(FEED, seed=5)
    assert set(seeds().values()) == {5, 6}


def test_what_failed_last_time_is_tried_again_until_it_is_made(shop: Shop) -> None:
    shop.run(FEED)
    version_list.mark_failed(shop.latest(), iter([("3", "front"), ("5", "table")]))
    assert shop.run(edited(FEED, 5, "mug", "cup")).pictures == {
        "changed": 2,
        "retried": 1,
        "unchanged": 32,
        "removed": 0,
    }
    assert shop.changes("retried") == [("3", "front")]
    assert shop.run(edited(FEED, 5, "mug", "cup")).pictures == {"unchanged": 35, "removed": 0}


def test_what_failed_and_then_had_a_problem_is_tried_again_when_that_is_over(shop: Shop) -> None:
    rows = [row.replace(",x", f",photo-{number}") for number, row in enumerate(FEED[:3])]
    shop.photographs = {f"photo-{number}": bytes([number]) * 32 for number in range(3)}
    shop.run(rows, variants={"front": REDRAWN})
    version_list.mark_failed(shop.latest(), iter([("1", "front")]))
    found = shop.photographs.pop("photo-0")
    for _ in range(2):
        assert shop.run(rows).pictures == {"broken": 1, "unchanged": 2, "removed": 0}
        version_list.mark_failed(shop.latest(), iter([]))
    shop.photographs["photo-0"] = found
    assert shop.run(rows).pictures == {"retried": 1, "unchanged": 2, "removed": 0}
    version_list.mark_failed(shop.latest(), iter([]))
    assert shop.run(rows).pictures == {"unchanged": 3, "removed": 0}


def test_a_new_model_renders_a_share_each_night_until_all_is_of_it(shop: Shop) -> None:
    shop.run(FEED, rerender=0.3)
    shop.revision, shop.steps = "second", 20
    seen: set[str] = set()
    for night, expected in enumerate((6, 6, 6, 2, 0)):
        rows = edited(FEED, 4, "red", "teal") if night == 1 else FEED  # what changes is of the new model at once
        plan = shop.run(rows)
        drawn = {item for item, _ in shop.changes("model")}
        assert len(drawn) == expected or night, (night, plan)
        assert not drawn & seen
        seen |= drawn
    models = {entry.shape.model_revision for entry in version_list.entries(shop.latest())}
    assert models == {"second"} and shop.run(FEED).pictures == {"unchanged": 35, "removed": 0}
    shop.revision = "third"
    assert shop.run(FEED, rerender=1).pictures == {"model": 35, "removed": 0}


def test_an_item_with_a_problem_keeps_its_picture_and_is_named(shop: Shop) -> None:
    shop.run(FEED)
    rows = edited(edited(FEED, 5, "red", " "), 6, ",2,", ",many,")
    plan = shop.run(rows, variants={"front": {"prompt": "{{ colour }}"}, "table": TABLE})
    assert (plan.items_broken, plan.pictures["broken"]) == (2, 2)
    assert [
        (one.item, one.place, one.variant, one.field, one.code) for one in version_list.problems(shop.latest())
    ] == [
        ("5", 6, "front", "variants.front", "empty_result"),
        ("6", 7, "table", "variants.table", "template_failed"),
    ]
    assert shop.changes("broken") == [("5", "front"), ("6", "table")]
    assert list(version_list.removed(shop.latest())) == []
    plan = shop.run(rows)
    assert plan.items_broken == 2, "it is said again the next night"
    long = edited(FEED, 5, "red", "r" * 2_001)
    assert shop.run(long).items_broken == 1
    assert "it must be text of 1 to 2,000 characters" in version_list.problems(shop.latest())[0].message


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([*FEED, FEED[2]], "1 row is wrong in the source; it is at line 22: sku is the one of line 4 again; each"),
        (
            [*FEED, FEED[2], FEED[2]],
            "2 rows are wrong in the source; the first is at line 22: sku is the one of line 4",
        ),
        (
            [*FEED, ",bowl,red,1,x"],
            "1 row is wrong in the source; it is at line 22: sku is empty; it must be text of 1 to",
        ),
        ([*FEED, "a\x07b,bowl,red,1,x"], 'it is at line 22: sku is "a\\u0007b"; it must be text of 1 to 512 bytes'),
        ([*FEED, '"broken" row,bowl,red,1,x'], "it is at line 22: a quoted text ends before its cell does"),
        ([], "The source holds no items."),
    ],
)
def test_a_source_with_a_bad_row_is_refused_with_one_report(shop: Shop, rows: list[str], sentence: str) -> None:
    shop.run(FEED)
    with pytest.raises(BadSource) as caught:
        shop.run(rows)
    assert sentence in str(caught.value)
    assert shop.run(FEED).pictures == {"unchanged": 35, "removed": 0}


def test_half_the_items_gone_needs_a_person(shop: Shop) -> None:
    shop.run(FEED)
    plan = shop.run(FEED[:15])
    assert plan.doubt.startswith("5 of 20 items have gone since the version before, which is more than 0.2 of them")
    assert plan.pictures["removed"] == 8


def test_a_list_that_is_not_complete_and_a_plan_without_end_are_given_up(shop: Shop) -> None:
    shop.run(FEED)
    shop.latest().write_bytes(shop.latest().read_bytes()[:5000])
    with pytest.raises(version_list.BadList):
        shop.run(FEED)
    version_list.create(shop.latest()).close()
    with pytest.raises(version_list.BadList, match="is not complete"):
        shop.run(FEED)
    found, _ = definition.read("shop", shop.given)
    assert found is not None
    with pytest.raises(TooSlow):
        planning.make(
            found, [], ItemFile(path=shop.folder / "feed.csv", form="csv", wanted=["sku"]).items(), unit="line",
            previous=None, path=shop.folder / "slow", seconds=-1,
        )  # fmt: skip
