"""Where the handlers of API and dashboard may see every tenant's rows."""

import ast
from collections.abc import Iterator
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services"
# Every other transaction of theirs is `read(tenant)` or `begin(tenant)`. A new entry needs a reason, in a comment.
SYSTEM_TRANSACTIONS = [
    ("api/authentication.py", "authenticate"),  # the key decides which tenant it is
    ("api/feed.py", "_latest"),  # it reads once for all who watch, and shows each only their own
    ("api/feed.py", "_look"),  # likewise
    ("api/public_items.py", "_find"),  # a public link names the catalogue and no tenant
    ("api/readiness.py", "_model_and_worker"),  # the route takes no key
    ("api/readiness.py", "check"),  # likewise
    ("api/v1/audit.py", "_number"),  # an administrator of the operator's names any tenant
    ("api/v1/audit.py", "page"),  # likewise
    ("api/v1/dataset_content.py", "_file"),  # a signed link names the dataset and no tenant
    ("api/v1/deletion.py", "delete_job"),  # a tenant's transaction cannot write a row that it would not see
    ("api/v1/estimation.py", "estimated"),  # every tenant's queued images are ahead
    ("api/v1/export_content.py", "_file"),  # a signed link names the export and no tenant
    ("api/v1/fleet.py", "show_backlog"),  # what waits and is rendered is read for all tenants
    ("api/v1/image_content.py", "_done_image"),  # a signed link names the image and no tenant
    ("api/v1/jobs.py", "described"),  # every tenant's queued images are ahead
    ("api/v1/keys.py", "issue"),  # a tenant's transaction can write no key
    ("api/v1/keys.py", "revoke"),  # likewise
    ("api/v1/lanes.py", "list_lanes"),  # what waits stands in one index for all tenants
    ("api/v1/search.py", "_found"),  # other tenants' requests count as looked at
    ("api/v1/sign_in_links.py", "create_sign_in_link"),  # a tenant's transaction can write none
    ("api/v1/tenant_deletion.py", "delete_tenant"),  # an administrator of the first tenant deletes another one
    ("api/v1/tenant_deletion.py", "show_tenant_deletion"),  # likewise
    ("api/v1/tenants.py", "_number"),  # an administrator of the operator's names any tenant
    ("api/v1/tenants.py", "change_tenant"),  # a tenant's transaction can write no tenant
    ("api/v1/tenants.py", "create_tenant"),  # likewise
    ("api/v1/tenants.py", "list_tenant_keys"),  # an administrator of the operator's names any tenant
    ("api/v1/tenants.py", "list_tenants"),  # likewise
    ("api/v1/tenants.py", "show_tenant"),  # likewise
    ("api/v1/usage.py", "show_usage_of"),  # a claim may hold images of several tenants
    ("api/v1/workers.py", "_fleet"),  # what a worker holds is of all tenants
    ("api/v1/workers.py", "drain_worker"),  # the fleet belongs to no tenant
    ("api/v1/workers.py", "resume_worker"),  # likewise
    ("dashboard/access.py", "find"),  # the cookie decides which tenant it is
    ("dashboard/pages/fleet.py", "_fleet"),  # claims are of all tenants
    ("dashboard/pages/fleet.py", "act"),  # the fleet belongs to no tenant
    ("dashboard/pages/lanes.py", "show_lanes"),  # what waits stands in one index for all tenants
    ("dashboard/pages/provider_sign_in.py", "_begin"),  # the provider decides which tenant it is
    ("dashboard/pages/sign_in.py", "_begin"),  # the key decides which tenant it is
    ("dashboard/pages/sign_in.py", "sign_out"),  # the cookie decides which session it is
    ("dashboard/pages/storage.py", "_audited"),  # the store is the installation's
    ("dashboard/reading.py", "shown"),  # every tenant's queued images are ahead
]


def system_transactions(source: str) -> Iterator[str]:
    """The innermost function around each use of `begin_system` or `read_system`; "" outside of all."""

    def visit(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Attribute) and node.attr in ("begin_system", "read_system"):
            yield function
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(ast.parse(source), "")


def test_the_api_sees_every_tenants_rows_in_listed_places_only():
    found = [
        (path.relative_to(SERVICES).as_posix(), function)
        for room in ("api", "dashboard")
        for path in sorted((SERVICES / room).rglob("*.py"))
        for function in system_transactions(path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == SYSTEM_TRANSACTIONS


def test_a_system_transaction_is_found_however_it_is_called():
    source = (
        "async def f():\n  begin = db.begin_system\n"
        "  def g():\n    with db.read_system() if x else y: pass\n"
        "db.begin_system()"
    )
    assert list(system_transactions(source)) == ["f", "g", ""]
