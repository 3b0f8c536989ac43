"""The mutation runner's faults: each is one small slip, at the place that it names, and nothing is mutated twice."""

import textwrap
from pathlib import Path

import pytest

from tests.mutation import in_python, in_sql, mutants, report
from tests.mutation.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]


def faulty(source: str) -> set[str]:
    return {" ".join((source[:start] + new + source[end:]).split()) for start, end, new, _ in in_sql.faults(source)}


def faulty_python(source: str) -> set[str]:
    source = textwrap.dedent(source)
    return {source[: edit.start] + edit.new + source[edit.end :] for edit in in_python.edits(source)}


@pytest.mark.parametrize(
    ("statement", "mutants"),
    [
        (
            "SELECT a FROM t WHERE a = :a AND b < :b",
            {
                "SELECT a FROM t WHERE a <> :a AND b < :b",
                "SELECT a FROM t WHERE a = :a AND b >= :b",
                "SELECT a FROM t WHERE a = :a AND b <= :b",
                "SELECT a FROM t WHERE a = :a",
                "SELECT a FROM t WHERE b < :b",
            },
        ),
        (
            "UPDATE t SET a = 'x', b = b + :n WHERE NOT c RETURNING a",
            {
                "UPDATE t SET b = b + :n WHERE NOT c RETURNING a",
                "UPDATE t SET a = 'x' WHERE NOT c RETURNING a",
                "UPDATE t SET a = 'x', b = b - :n WHERE NOT c RETURNING a",
                "UPDATE t SET a = 'x', b = b + :n WHERE c RETURNING a",
                "UPDATE t SET a = 'x', b = b + :n WHERE true RETURNING a",
            },
        ),
        (
            "SELECT a FROM t ORDER BY a, b DESC LIMIT :n FOR UPDATE SKIP LOCKED",
            {
                "SELECT a FROM t ORDER BY a DESC, b DESC LIMIT :n FOR UPDATE SKIP LOCKED",
                "SELECT a FROM t ORDER BY a, b LIMIT :n FOR UPDATE SKIP LOCKED",
                "SELECT a FROM t ORDER BY a, b DESC FOR UPDATE SKIP LOCKED",
                "SELECT a FROM t ORDER BY a, b DESC LIMIT :n",
                "SELECT a FROM t ORDER BY a, b DESC LIMIT :n FOR UPDATE",
            },
        ),
        (
            "INSERT INTO t VALUES (least(:a, 3)) ON CONFLICT (a) DO UPDATE SET a = excluded.a RETURNING a",
            {
                "INSERT INTO t VALUES (greatest(:a, 3)) ON CONFLICT (a) DO UPDATE SET a = excluded.a RETURNING a",
                "INSERT INTO t VALUES (least(:a, 4)) ON CONFLICT (a) DO UPDATE SET a = excluded.a RETURNING a",
                "INSERT INTO t VALUES (least(:a, 3)) RETURNING a",
                "INSERT INTO t VALUES (least(:a, 3)) ON CONFLICT (a) DO NOTHING RETURNING a",
            },
        ),
        (
            "SELECT -count(*) FROM t WHERE s IN ('a', 'b') OR x IS NULL",
            {
                "SELECT count(*) FROM t WHERE s IN ('a', 'b') OR x IS NULL",
                "SELECT -count(*) FROM t WHERE s NOT IN ('a', 'b') OR x IS NULL",
                "SELECT -count(*) FROM t WHERE s IN ('b') OR x IS NULL",
                "SELECT -count(*) FROM t WHERE s IN ('a') OR x IS NULL",
                "SELECT -count(*) FROM t WHERE s IN ('a', 'b') AND x IS NULL",
                "SELECT -count(*) FROM t WHERE s IN ('a', 'b') OR x IS NOT NULL",
                "SELECT -count(*) FROM t WHERE s IN ('a', 'b')",
                "SELECT -count(*) FROM t WHERE x IS NULL",
            },
        ),
        (
            "SELECT a FROM t WHERE seen_at > now() AND j = ANY(:ids)",  # no two instants are equal
            {
                "SELECT a FROM t WHERE seen_at <= now() AND j = ANY(:ids)",
                "SELECT a FROM t WHERE seen_at > now() AND j <> ALL(:ids)",
                "SELECT a FROM t WHERE seen_at > now()",
                "SELECT a FROM t WHERE j = ANY(:ids)",
            },
        ),
    ],
)
def test_a_statement_gets_every_small_fault_and_no_other(statement, mutants):
    assert faulty(statement) == mutants


def test_python_gets_every_small_fault_and_words_are_left_alone():
    source = '''
    def f(a: int, b: str) -> bool:
        """Is 1 < 2?"""
        if not a:
            raise ValueError(f"{a + 1} is 1 of 2")
        log.info("told", extra={"n": 1})
        g(b)
        return min(a, 3) < 4
    '''
    whole = textwrap.dedent(source)
    assert faulty_python(source) == {
        whole.replace(old, new)
        for old, new in [
            ("if not a", "if  a"), ("if not a", "if True"), ("if not a", "if False"),
            ('raise ValueError(f"{a + 1} is 1 of 2")', "pass"), ("    g(b)", "    pass"),
            ("min", "max"), (", 3)", ", 4)"), (", 3)", ", 2)"), ("< 4", "<= 4"), ("< 4", ">= 4"),
            ("< 4", "< 5"), ("< 4", "< 3"),
        ]
    }  # fmt: skip


def test_a_mutant_keeps_its_name_when_other_code_moves(tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", TARGETS["batching"])
    path = tmp_path / TARGETS["toy"].path
    path.parent.mkdir(parents=True)
    names = []
    for head in ("", "OTHER = 1\n\n\n"):
        path.write_text(f"{head}def f(a, b):\n    return a + b\n")
        names.append({mutant.key for mutant in mutants.of("toy", tmp_path) if mutant.where == "f"})
    assert names[0] == names[1]
    assert len(names[0]) == 2


@pytest.mark.parametrize("target", ["leases", "batching"])  # of all it takes long
def test_every_mutant_has_a_name_of_its_own(target):
    found = mutants.of(target, ROOT)
    assert len(found) > 20
    assert len({mutant.key for mutant in found}) == len({mutant.source for mutant in found}) == len(found)


def test_what_is_mutated_and_its_tests_are_there():
    for target in TARGETS.values():
        assert all((ROOT / file).is_file() for file in (target.path, *target.tests)), target


def test_an_explanation_holds_for_its_fault_wherever_the_statement_lies(tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "toy", TARGETS["batching"])
    path = tmp_path / TARGETS["toy"].path
    path.parent.mkdir(parents=True)
    path.write_text("def f(a, b):\n    return  a + b\n")
    told = tmp_path / "equivalent.toml"
    entry = '[[other]]\nin = "{}"\nline = "return a + b"\nbecomes = "return a - b"\nbecause = "so"\n'
    told.write_text(entry.format("f") + entry.format("g"))
    equivalents = report.Equivalents(told)
    reasons = {mutant.what: equivalents.reason(mutant) for mutant in mutants.of("toy", tmp_path)}
    assert reasons == {"+ becomes -": "so", "nothing is returned": None}
    assert equivalents.unmet() == ["other, g: return a + b"]
