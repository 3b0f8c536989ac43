-- Null: the run needs no list, or was planned by a release whose lists lay at runs/ID.sqlite.
ALTER TABLE catalogue_runs ADD COLUMN list_key text;
