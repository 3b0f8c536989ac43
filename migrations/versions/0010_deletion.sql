-- From this moment on the job is hidden from its tenant; a background task deletes its objects and rows.
ALTER TABLE jobs ADD COLUMN deleted_at timestamptz;
CREATE INDEX jobs_deleted ON jobs (tenant_id, id) WHERE deleted_at IS NOT NULL;

-- In a tenant's transactions a deleted job is not there, and nor are the images, payloads, results, failures and
-- counters, which a tenant sees through its jobs. Transactions of the system see it.
CREATE POLICY kept ON jobs AS RESTRICTIVE USING ((SELECT presswork_tenant()) IS NULL OR deleted_at IS NULL);

-- The application has no right to delete these rows. It may call these two functions, and they delete rows of one job
-- that is deleted and has ended. Each call is one short statement; whoever calls them repeats them until all is gone.
CREATE FUNCTION presswork_is_deleted(job bigint) RETURNS boolean LANGUAGE sql STABLE AS
  $$ SELECT EXISTS (SELECT FROM jobs WHERE id = job AND deleted_at IS NOT NULL AND finished_at IS NOT NULL) $$;

-- The rows of the images from index `first` to `past`, which is not among them. Returns how many images it deleted.
CREATE FUNCTION presswork_delete_images(job bigint, first bigint, past bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  deleted integer;
BEGIN
  IF NOT presswork_is_deleted(job) THEN
    RETURN 0;
  END IF;
  DELETE FROM results WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM payloads WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM failures WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM images WHERE job_id = job AND index >= first AND index < past;
  GET DIAGNOSTICS deleted = ROW_COUNT;
  RETURN deleted;
END $$;

-- Up to `most` of the job's other rows and, once there are none, the job. Returns how many rows it deleted.
CREATE FUNCTION presswork_delete_job(job bigint, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  deleted integer;
BEGIN
  IF NOT presswork_is_deleted(job) OR EXISTS (SELECT FROM images WHERE job_id = job)
     OR EXISTS (SELECT FROM exports WHERE job_id = job) THEN
    RETURN 0;
  END IF;
  DELETE FROM counter_deltas WHERE id = ANY (ARRAY(
    SELECT id FROM counter_deltas WHERE job_id = job LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM job_chunks WHERE job_id = job AND number = ANY (ARRAY(
    SELECT number FROM job_chunks WHERE job_id = job ORDER BY number LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM segments WHERE job_id = job AND id = ANY (ARRAY(
    SELECT id FROM segments WHERE job_id = job ORDER BY id LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM counters WHERE job_id = job;
  DELETE FROM jobs WHERE id = job;
  RETURN 1;
END $$;

REVOKE ALL ON FUNCTION presswork_delete_images(bigint, bigint, bigint), presswork_delete_job(bigint, integer) FROM PUBLIC;

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT EXECUTE ON FUNCTION presswork_delete_images(bigint, bigint, bigint), presswork_delete_job(bigint, integer)
      TO presswork_app;
  END IF;
END $$;

-- Deletes events that are more than `days` old, of the `most` with the lowest numbers. The newest numbered event stays,
-- however old it is: the next number is the one after it (0005). So do events without a number.
CREATE FUNCTION presswork_forget_events(days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  forgotten integer;
BEGIN
  IF days < 7 THEN
    RAISE EXCEPTION 'events are kept for at least 7 days';
  END IF;
  DELETE FROM events WHERE id = ANY (ARRAY(
    SELECT id FROM events WHERE seq < (SELECT max(seq) FROM events) ORDER BY seq LIMIT most
  )) AND at < now() - make_interval(days => days);
  GET DIAGNOSTICS forgotten = ROW_COUNT;
  RETURN forgotten;
END $$;
REVOKE ALL ON FUNCTION presswork_forget_events(integer, integer) FROM PUBLIC;

-- Every event that is numbered leaves a dead entry at the head of the index of those that wait for a number, and each
-- numbering reads past these until they are vacuumed: so that happens after 1 % of the rows, not after 20 %.
ALTER TABLE events SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT EXECUTE ON FUNCTION presswork_forget_events(integer, integer) TO presswork_app;
  END IF;
END $$;
