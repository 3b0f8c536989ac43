-- When a scheduler last looked at the mark, and why no orphan may be deleted, if so.
ALTER TABLE storage_mark ADD COLUMN looked_at timestamptz, ADD COLUMN refusal text;

-- When the tenant's folders were looked at again, for what a task that was under way stored after their deletion.
ALTER TABLE tenant_deletions ADD COLUMN swept_at timestamptz;
CREATE INDEX tenant_deletions_unswept ON tenant_deletions (finished_at) WHERE swept_at IS NULL;

-- As before, but it holds the tables' locks for the drop alone: it reads no row of the partitions. Rows of no job go
-- with them. If a job of a week turns out to stay, the rows of the others are deleted one by one after all.
CREATE OR REPLACE FUNCTION presswork_drop_partitions(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  epoch timestamptz := timestamptz '2026-01-01Z'; week text; parent text; leaf text; monday timestamp;
  low bigint; high bigint; weeks integer := 0; dropped integer := 0; leaves integer;
BEGIN
  IF NOT presswork_house() THEN
    RETURN 0;
  END IF;
  FOR week IN SELECT right(relname, 8) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
      WHERE inhparent = 'images'::regclass AND relname ~ '^images_[0-9]{8}$' ORDER BY 1 LOOP
    monday := to_timestamp(week, 'YYYYMMDD')::date;
    EXIT WHEN weeks >= most OR monday + interval '14 days' > now() AT TIME ZONE 'UTC';
    low := (extract(epoch FROM monday AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
    high := (extract(epoch FROM (monday + interval '7 days') AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
    IF EXISTS (SELECT FROM jobs WHERE id >= low AND id < high AND NOT drops_with_week) THEN
      IF EXISTS (SELECT FROM jobs WHERE id >= low AND id < high AND deleted_at IS NULL) THEN
        UPDATE jobs SET drops_with_week = false
        WHERE id >= low AND id < high AND deleted_at IS NOT NULL AND drops_with_week;
      END IF;
      CONTINUE;
    END IF;
    BEGIN
      FOREACH parent IN ARRAY ARRAY['images', 'payloads', 'results'] LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent);
      END LOOP;
      leaves := 0;
      IF NOT EXISTS (SELECT FROM jobs WHERE id >= low AND id < high AND NOT drops_with_week) THEN
        FOREACH parent IN ARRAY ARRAY['images', 'payloads', 'results'] LOOP
          leaf := parent || '_' || week;
          CONTINUE WHEN to_regclass(leaf) IS NULL;
          EXECUTE format('DROP TABLE %I', leaf);
          leaves := leaves + 1;
        END LOOP;
      END IF;
      dropped := dropped + leaves;
      weeks := weeks + 1;
    EXCEPTION WHEN lock_not_available THEN
      RETURN dropped;
    END;
  END LOOP;
  RETURN dropped;
END $$;

-- As before, but one call deletes no more than `most` rows of all tables together, and finds them by their places.
CREATE OR REPLACE FUNCTION presswork_delete_tenant_rows(tenant integer, tables text[], most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_partition_pruning = off AS $$
DECLARE
  one record; gone bigint; deleted bigint := 0; chosen text;
BEGIN
  IF NOT presswork_house() OR NOT EXISTS (SELECT FROM tenants WHERE id = tenant AND deleted_at IS NOT NULL) THEN
    RETURN 0;
  END IF;
  FOR one IN SELECT * FROM presswork_tenant_tables() LOOP
    CONTINUE WHEN one.name <> ALL (tables);
    EXIT WHEN deleted >= most;
    chosen := CASE WHEN one.name = 'events' THEN ' AND seq < (SELECT max(seq) FROM events)' ELSE '' END;
    chosen := format('FROM %I WHERE %s%s LIMIT $2', one.name, one.condition, chosen);
    chosen := CASE (SELECT relkind FROM pg_class WHERE oid = one.name::regclass)
      WHEN 'r' THEN 'ctid = ANY (ARRAY(SELECT ctid ' || chosen || '))'
      ELSE '(tableoid, ctid) IN (SELECT tableoid, ctid ' || chosen || ')' END;
    BEGIN
      EXECUTE format('DELETE FROM %I WHERE %s', one.name, chosen) USING tenant, most - deleted;
      GET DIAGNOSTICS gone = ROW_COUNT;
      deleted := deleted + gone;
    EXCEPTION WHEN foreign_key_violation THEN
      NULL;
    END;
  END LOOP;
  RETURN deleted;
END $$;

-- As before, and the words of prompts that stand beside the images.
CREATE OR REPLACE FUNCTION presswork_erase_payloads(job bigint, first bigint, past bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  erased integer;
BEGIN
  IF NOT EXISTS (SELECT FROM jobs WHERE id = job AND payloads_erased_at IS NOT NULL) THEN
    RETURN 0;
  END IF;
  UPDATE results SET unknown_words = '[]'
  WHERE job_id = job AND index >= first AND index < past AND unknown_words <> '[]';
  UPDATE payloads SET prompt = '', negative_prompt = '', metadata = NULL, image = NULL, image_key = NULL,
         image_sha256 = NULL
  WHERE job_id = job AND index >= first AND index < past
    AND (prompt <> '' OR negative_prompt <> '' OR metadata IS NOT NULL OR image IS NOT NULL);
  GET DIAGNOSTICS erased = ROW_COUNT;
  RETURN erased;
END $$;
