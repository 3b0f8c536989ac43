-- Programs of the release before use the old name: an updatable view, which passes reads and writes on to the table.
ALTER TABLE duties RENAME TO leases;
ALTER INDEX duties_pkey RENAME TO leases_pkey;
CREATE VIEW duties WITH (security_invoker = true) AS SELECT name, holder, epoch, expires_at FROM leases;

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, INSERT, UPDATE, DELETE ON duties TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON duties TO presswork_reader;
  END IF;
END $$;
