"""Virtual time for the real SQL: a database whose `now()` is what the simulation says.

A schema stands before `pg_catalog` in the search path and has its own `now()`, `clock_timestamp()` and
`pg_postmaster_start_time()`, which read settings that each transaction carries. Defaults of columns and functions with
a search path of their own are changed to it, in the copy of the database that the simulation uses. There only the
default partitions are left: the rows of a week of its own may wait to be dropped with it. Ids hold the virtual time
too. So nothing depends on when, or on how fast a machine, a history is run.
"""

from datetime import UTC, datetime, timedelta
from itertools import count

import psycopg

from services.core.model import ids

BEGIN = datetime(2031, 3, 3, 12, tzinfo=UTC)
TICK = timedelta(milliseconds=1)  # from each transaction to the next
PATH = "sim, pg_catalog, public"

_INSTALL = """
DO $$
DECLARE found record;
BEGIN
  FOR found IN
    SELECT c.oid::regclass AS name FROM pg_class c
    WHERE c.relispartition AND c.relkind = 'r' AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'
  LOOP
    EXECUTE format('DROP TABLE %s', found.name);
  END LOOP;
END $$;
CREATE SCHEMA sim;
GRANT USAGE ON SCHEMA sim TO PUBLIC;
CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT current_setting('sim.now')::timestamptz $$;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT current_setting('sim.now')::timestamptz $$;
CREATE FUNCTION sim.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT current_setting('sim.now')::timestamptz $$;
CREATE FUNCTION sim.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT current_setting('sim.started')::timestamptz $$;
DO $$
DECLARE found record;
BEGIN
  FOR found IN
    SELECT d.adrelid::regclass AS relation, a.attname AS name
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_class c ON c.oid = d.adrelid
    WHERE pg_get_expr(d.adbin, d.adrelid) = 'now()' AND c.relnamespace = 'public'::regnamespace
  LOOP
    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT sim.now()', found.relation, found.name);
  END LOOP;
  FOR found IN
    SELECT p.oid::regprocedure AS function FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.proconfig::text LIKE '%search_path%'
  LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = sim, pg_catalog, public, pg_temp', found.function);
  END LOOP;
END $$;
"""
# What would still read the machine's clock.
_REAL = """
SELECT 'default of ' || adrelid::regclass FROM pg_attrdef
WHERE pg_get_expr(adbin, adrelid) ~* '(now|timestamp|current_date)' AND pg_get_expr(adbin, adrelid) !~ 'sim\\.now'
UNION ALL SELECT 'view ' || viewname FROM pg_views
WHERE schemaname = 'public' AND definition ~* '(now\\(\\)|current_(date|time)|clock_timestamp)'
UNION ALL SELECT 'function ' || proname FROM pg_proc
WHERE pronamespace = 'public'::regnamespace AND prosrc ~* 'current_(date|time)'
"""


class Clock:
    """The time of the database and of new ids."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.now = BEGIN
        self.started = BEGIN - timedelta(days=1)
        self._numbers = count(1)

    def tick(self) -> datetime:
        self.now += TICK
        return self.now

    def new_id(self) -> int:
        """Like `ids.new`, and in order also within a millisecond; unique also after the clock was set back."""
        milliseconds = int((self.now - ids.EPOCH) / timedelta(milliseconds=1))
        return milliseconds << ids.RANDOM_BITS | next(self._numbers)


def install(superuser: psycopg.Connection) -> None:
    """Gives this database virtual time. `superuser` owns everything in it."""
    superuser.execute(_INSTALL)
    real = [row[0] for row in superuser.execute(_REAL).fetchall()]
    assert not real, f"these read the machine's clock: {', '.join(real)}"


def assert_virtual(superuser: psycopg.Connection) -> None:
    """No moment that any table holds was read from the machine's clock."""
    columns = superuser.execute("""
        SELECT quote_ident(c.relname), quote_ident(a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.atttypid = 'timestamptz'::regtype
    """).fetchall()
    for table, column in columns:
        real = f"{column} > '2026-01-02' AND {column} BETWEEN now() - interval '1 day' AND now() + interval '1 day'"
        found = superuser.execute(f"SELECT count(*) FROM {table} WHERE {real}").fetchone()
        assert found == (0,) or table in _SEEDED, f"{table}.{column} was read from the machine's clock"


_SEEDED = {"tenants", "models", "model_shapes", "tenant_usage", "alembic_version"}  # have rows from before
