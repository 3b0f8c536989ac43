-- One row. The id is written into the marker object under each prefix; a bucket's earlier objects have no prefix.
CREATE TABLE installation (
  singleton boolean PRIMARY KEY DEFAULT true,
  id uuid NOT NULL DEFAULT gen_random_uuid(),
  prefixes text[] NOT NULL DEFAULT '{}',
  CONSTRAINT installation_singleton CHECK (singleton)
);
INSERT INTO installation (prefixes)
SELECT CASE WHEN EXISTS (SELECT FROM jobs) OR EXISTS (SELECT FROM files) THEN ARRAY[''] ELSE ARRAY[]::text[] END;

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, UPDATE (prefixes) ON installation TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON installation TO presswork_reader;
  END IF;
END $$;
