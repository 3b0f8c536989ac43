ALTER TABLE results ADD COLUMN scores jsonb, ADD COLUMN phash bigint;
-- The numbers of results.scores, in their order. Its rows are written with the result and deleted with it.
CREATE TABLE image_scores (
  job_id bigint,
  name text,
  value double precision,
  index integer,
  PRIMARY KEY (job_id, name, value, index)
);

-- As before, and of the new table too: the rows of the images from index `first` to `past`, which is not among them.
-- Returns how many images it deleted.
CREATE OR REPLACE FUNCTION presswork_delete_images(job bigint, first bigint, past bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  deleted integer;
BEGIN
  IF NOT presswork_is_deleted(job) THEN
    RETURN 0;
  END IF;
  DELETE FROM image_scores USING (
    SELECT results.index, score.name, CAST(score.value AS double precision) AS value
    FROM results CROSS JOIN LATERAL jsonb_each_text(results.scores) AS score (name, value)
    WHERE results.job_id = job AND results.index >= first AND results.index < past AND score.value IS NOT NULL
  ) gone
  WHERE image_scores.job_id = job AND image_scores.name = gone.name AND image_scores.value = gone.value
    AND image_scores.index = gone.index;
  DELETE FROM results WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM payloads WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM marks WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM failures WHERE job_id = job AND index >= first AND index < past;
  DELETE FROM images WHERE job_id = job AND index >= first AND index < past;
  GET DIAGNOSTICS deleted = ROW_COUNT;
  RETURN deleted;
END $$;
