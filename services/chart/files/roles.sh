exec psql -X -q -v ON_ERROR_STOP=1 <<'SQL'
SET client_min_messages = warning;
SET log_min_error_statement = panic;  -- a failing statement's text holds a password
\getenv migrator MIGRATOR_PASSWORD
\getenv reader READER_PASSWORD
\getenv web WEB_PASSWORD
\getenv scheduler SCHEDULER_PASSWORD
\getenv worker WORKER_PASSWORD
-- presswork_app is the role that all programs of earlier releases had: nobody logs in as it any more.
SELECT format('CREATE ROLE presswork_%s', name)
  FROM unnest(ARRAY['migrator', 'reader', 'web', 'scheduler', 'worker', 'tenant', 'app']) AS name
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'presswork_' || name) \gexec
ALTER ROLE presswork_migrator LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'migrator';
ALTER ROLE presswork_reader LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'reader';
ALTER ROLE presswork_reader SET default_transaction_read_only = on;
ALTER ROLE presswork_web LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOINHERIT PASSWORD :'web';
ALTER ROLE presswork_scheduler LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'scheduler';
ALTER ROLE presswork_worker LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'worker';
GRANT presswork_tenant TO presswork_web, presswork_app;  -- it is taken for a transaction: core/db/sessions.py
SELECT 'CREATE DATABASE presswork OWNER presswork_migrator'
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'presswork') \gexec
REVOKE ALL ON DATABASE presswork FROM PUBLIC;
GRANT CONNECT ON DATABASE presswork
  TO presswork_reader, presswork_web, presswork_scheduler, presswork_worker, presswork_app;
SQL
