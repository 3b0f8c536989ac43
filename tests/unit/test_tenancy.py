"""Where the API's handlers may see every tenant's rows."""

import ast
from collections.abc import Iterator
from pathlib import Path

API = Path(__file__).parents[2] / "services" / "api"
# Every other transaction of the API is `begin(tenant)`. A new entry needs a reason, in a comment at the call.
SYSTEM_TRANSACTIONS = [
    ("authentication.py", "authenticate"),  # the key decides which tenant it is
    ("feed.py", "_latest"),  # it reads once for all who watch, and shows each only their own
    ("feed.py", "_look"),  # likewise
    ("health.py", "collect"),  # sums over all tenants
    ("readiness.py", "_model_and_worker"),  # the route takes no key
    ("readiness.py", "check"),  # likewise
    ("v1/deletion.py", "delete_job"),  # a tenant's transaction cannot write a row that it would not see
    ("v1/estimation.py", "_estimate"),  # every tenant's queued images are ahead
    ("v1/export_content.py", "_file"),  # a signed link names the export and no tenant
    ("v1/image_content.py", "_done_image"),  # a signed link names the image and no tenant
    ("v1/jobs.py", "described"),  # every tenant's queued images are ahead
    ("v1/keys.py", "create_key"),  # a tenant's transaction can write no key
    ("v1/keys.py", "revoke_key"),  # likewise
    ("v1/workers.py", "drain_worker"),  # the fleet belongs to no tenant
    ("v1/workers.py", "resume_worker"),  # likewise
]


def system_transactions(source: str) -> Iterator[str]:
    """The innermost function around each use of `begin_system`; "" outside of all."""

    def visit(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute) and node.attr == "begin_system":
            yield function
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(ast.parse(source), "")


def test_the_api_sees_every_tenants_rows_in_listed_places_only():
    found = [
        (path.relative_to(API).as_posix(), function)
        for path in sorted(API.rglob("*.py"))
        for function in system_transactions(path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == SYSTEM_TRANSACTIONS


def test_a_system_transaction_is_found_however_it_is_called():
    source = (
        "async def f():\n  begin = db.begin_system\n"
        "  def g():\n    with db.begin_system() if x else y: pass\n"
        "db.begin_system()"
    )
    assert list(system_transactions(source)) == ["f", "g", ""]
