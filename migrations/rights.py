"""What each program may do in the database: a role for web servers, one for schedulers and one for workers.

`presswork migrate` gives each role that exists exactly these rights, at its end, whatever the role had before. Whoever
has one role for all programs (presswork_app, or the owner) makes none of the three. `tests/integration/test_rights.py`
compares the rights with what the programs' statements need.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, text

ALL = {"INSERT (tenant_id, actor, kind, subject, data)": "events", "UPDATE (prefixes)": "installation"}
LOCKED = {
    "UPDATE (id)": "counter_deltas failure_deltas tenant_usage_deltas"
}  # nobody changes an id: to lock a row takes the right to change a column
# A web server does what it does for a tenant as presswork_tenant (0009). This is what it does besides: it checks keys,
# sums up for monitoring and estimates, opens images, exports' files and catalogues' pictures by their links, marks jobs
# as deleted unless a catalogue or its run reads their files, reads events for watchers.
WEB = {
    "SELECT": "alembic_version installation tenants api_keys models workers leases jobs job_counts counters "
    "counter_deltas segments images payloads results failures engines claims render_rates exports export_files files "
    "events drains marks sessions sign_in_links catalogues catalogue_entries catalogue_runs job_inputs "
    "datasets dataset_versions dataset_shards dataset_files dataset_jobs tenant_usage tenant_usage_deltas rates "
    "tenant_deletions audit_seals storage_audits storage_mark",
    "INSERT": "api_keys drains sessions sign_in_links tenants tenant_deletions",
    "DELETE": "drains sessions sign_in_links",
    "UPDATE": "jobs segments exports files",
    "UPDATE (hmac, revoked_at, last_used_at)": "api_keys",
    "UPDATE (name, weight, state, max_images_queued, max_images_in_flight, max_requests_per_second, max_bytes_stored, "
    "max_bytes_spooled, max_device_seconds_per_day)": "tenants",
    **ALL,
}
SCHEDULER = {
    "SELECT": "alembic_version installation tenants models model_shapes workers leases jobs job_counts counters "
    "counter_deltas segments images payloads results failures claims idempotency exports export_files files uploads "
    "upload_parts marks rates failure_deltas failure_counts failure_hours bulk_acts schedules schedule_runs "
    "render_rates drains catalogues catalogue_runs catalogue_changes catalogue_versions catalogue_entries job_chunks "
    "mark_counts engines catalogue_destinations catalogue_copies job_inputs "
    "datasets dataset_versions dataset_shards dataset_files dataset_jobs tenant_usage tenant_usage_deltas policy_terms "
    "license_acceptances webhook_cursor webhook_endpoints webhook_deliveries events retention_rules retention_work "
    "tenant_deletions storage_mark storage_audits storage_orphans storage_findings audit_seals audit_cursor",
    "INSERT": "jobs segments counters counter_deltas idempotency leases exports export_files files rates failures "
    "failure_deltas failure_counts failure_hours schedule_runs job_chunks catalogue_runs catalogue_changes "
    "catalogue_versions catalogue_entries catalogue_destinations catalogue_copies job_inputs "
    "dataset_shards dataset_files dataset_jobs tenant_usage tenant_usage_deltas webhook_deliveries webhook_tries "
    "retention_work storage_audits storage_orphans storage_findings audit_seals",
    "UPDATE": "storage_mark storage_audits storage_orphans storage_findings tenant_deletions "
    "retention_work jobs segments images claims counters leases exports files uploads "
    "rates failure_counts failure_hours "
    "bulk_acts schedule_runs catalogues catalogue_runs catalogue_changes catalogue_entries "
    "catalogue_destinations catalogue_copies datasets dataset_versions dataset_shards tenant_usage "
    "webhook_cursor webhook_endpoints webhook_deliveries",
    "UPDATE (virtual_time)": "tenants",
    "UPDATE (next_at)": "schedules",
    "UPDATE (sealed_seq)": "audit_cursor",
    "SELECT (id, tenant_id, name)": "api_keys",  # whose jobs an act is about
    "DELETE": "render_rates storage_orphans storage_findings retention_work rates failure_deltas failure_hours "
    "counter_deltas claims workers "
    "idempotency leases exports "
    "export_files files upload_parts schedule_runs bulk_acts catalogue_changes catalogue_versions catalogue_entries "
    "catalogue_destinations catalogue_copies datasets dataset_shards dataset_files dataset_jobs tenant_usage_deltas "
    "webhook_deliveries",
    **LOCKED,
    **ALL,
}
WORKER = {
    "SELECT": "alembic_version installation tenants models model_shapes workers jobs counters counter_deltas segments "
    "images payloads results failures engines claims render_rates rates drains "
    "failure_deltas failure_counts failure_hours tenant_usage tenant_usage_deltas",
    "INSERT": "models model_shapes model_classes workers engines claims counter_deltas segments results image_scores "
    "failures render_rates rates "
    "failure_deltas failure_counts failure_hours tenant_usage",
    "UPDATE": "models model_shapes workers engines claims counters segments images failures render_rates rates "
    "failure_counts failure_hours tenant_usage",
    "UPDATE (state, started_at)": "jobs",
    "UPDATE (virtual_time)": "tenants",
    **LOCKED,
    "DELETE": "counter_deltas failure_deltas tenant_usage_deltas",
    **ALL,
}
RIGHTS = {"presswork_web": WEB, "presswork_scheduler": SCHEDULER, "presswork_worker": WORKER}
FUNCTIONS = {
    "presswork_web": "presswork_condemn_tenant",
    "presswork_scheduler": "presswork_number_events presswork_make_partitions presswork_forget_events "
    "presswork_delete_images presswork_delete_job presswork_erase_payloads presswork_drop_partitions "
    "presswork_is_condemned presswork_forget_failures "
    "presswork_forget_trail "
    "presswork_tenant_tables presswork_delete_tenant_rows presswork_count_tenant_rows presswork_delete_tenant",
    "presswork_worker": "presswork_number_events",
}
Right = tuple[str, str, str]  # a table, a column or nothing, a privilege

_HELD = text("""
SELECT relname, '', privilege_type FROM pg_class, aclexplode(relacl)
WHERE relnamespace = 'public'::regnamespace AND NOT relispartition AND grantee = to_regrole(:role)
UNION ALL
SELECT relname, attname, privilege_type FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl)
WHERE relnamespace = 'public'::regnamespace AND NOT relispartition AND grantee = to_regrole(:role)
""")
_FUNCTIONS = text("""
SELECT oid::regprocedure::text, proname = ANY(:wanted) AS wanted FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND proname = ANY(:wanted) <> EXISTS (
  SELECT FROM aclexplode(proacl) WHERE grantee = to_regrole(:role))
""")
# The policies by which a transaction of the system sees every tenant's rows: 0009.
_POLICIES = text("""
SELECT polname, relname, ARRAY(SELECT member::regrole::text FROM unnest(polroles) AS member) AS members
FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
WHERE polname IN ('system', 'house') AND relname = ANY(:tables) AND to_regrole(:role) <> ALL(polroles)
ORDER BY relname
""")
_LEAVES = text("""
SELECT presswork_allow_inserts(relname) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent IN ('images'::regclass, 'payloads'::regclass) AND relkind = 'r'
  AND NOT has_table_privilege('presswork_scheduler', inhrelid, 'INSERT')
""")
_ENTERS = text("SELECT has_schema_privilege(to_regrole(:role), 'public', 'USAGE')")  # null: there is no such role


def apply(connection: Connection) -> None:
    """For the owner of the tables. Changes only what differs, and each table's policy in a transaction of its own, so
    nobody waits for two of them."""
    for role in RIGHTS:
        enters = connection.execute(_ENTERS, {"role": role}).scalar_one()
        if enters is not None:
            if not enters:
                connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {role}")
            for statement in _changes(connection, role):
                connection.exec_driver_sql(statement)
            if role == "presswork_scheduler":
                connection.execute(_LEAVES)
            connection.commit()
            tables = sorted({table for table, _, _ in wanted(role)})
            for policy, table, members in connection.execute(_POLICIES, {"role": role, "tables": tables}).all():
                connection.exec_driver_sql(f"ALTER POLICY {policy} ON {table} TO {', '.join([*members, role])}")
                connection.commit()


def wanted(role: str) -> set[Right]:
    """Every right that the role is to have on tables and views."""
    return set(_spelled_out(RIGHTS[role]))


def _spelled_out(rights: dict[str, str]) -> Iterator[Right]:
    for privilege, tables in rights.items():
        word, _, columns = privilege.rstrip(")").partition(" (")
        for table in tables.split():
            for column in columns.split(", "):
                yield table, column, word


def _changes(connection: Connection, role: str) -> Iterator[str]:
    """The statements that take away what the role has too much, and give it what it lacks."""
    held = {(table, column, word) for table, column, word in connection.execute(_HELD, {"role": role})}
    for table, column, word in sorted(held - wanted(role)):
        yield f"REVOKE {_on(table, column, word)} FROM {role}"
    for table, column, word in sorted(wanted(role) - held):
        yield f"GRANT {_on(table, column, word)} TO {role}"
    names = FUNCTIONS[role].split()
    for function, is_wanted in connection.execute(_FUNCTIONS, {"role": role, "wanted": names}).all():
        yield (
            f"GRANT EXECUTE ON FUNCTION {function} TO {role}"
            if is_wanted
            else f"REVOKE ALL ON FUNCTION {function} FROM {role}"
        )


def _on(table: str, column: str, word: str) -> str:
    return f"{word} ({column}) ON {table}" if column else f"{word} ON {table}"
