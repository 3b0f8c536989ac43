-- The API checks the name against services/core/exports/formats.py before a row is written.
ALTER TABLE exports DROP CONSTRAINT exports_format;
