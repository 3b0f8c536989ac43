-- As before, and schedulers too may insert into the partitions that a submission is copied into: they submit files.
CREATE OR REPLACE FUNCTION presswork_allow_inserts(leaf text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    EXECUTE format('GRANT INSERT ON %I TO presswork_app', leaf);
  END IF;
  IF to_regrole('presswork_scheduler') IS NOT NULL AND leaf NOT LIKE 'results%' THEN
    EXECUTE format('GRANT INSERT ON %I TO presswork_scheduler', leaf);
  END IF;
  EXECUTE format('GRANT INSERT ON %I TO presswork_tenant', leaf);
END $$;
