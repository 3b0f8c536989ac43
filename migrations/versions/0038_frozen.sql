-- How a job was when the version was planned; null: planned by the release before.
ALTER TABLE dataset_jobs ADD COLUMN state text, ADD COLUMN labels jsonb;

-- A completed version that was deleted. Its row and the names of its shards stay: no number is given twice.
ALTER TABLE dataset_versions ADD COLUMN deleted_at timestamptz;
CREATE INDEX dataset_versions_deleted ON dataset_versions (tenant_id, dataset_id)
  WHERE deleted_at IS NOT NULL AND is_stored;

-- Of all files that stand in the version, also those that were stored for one before; null: of the release before.
ALTER TABLE dataset_versions ADD COLUMN total_bytes bigint;
