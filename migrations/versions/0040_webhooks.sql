-- The last event of which deliveries were made. Events get their numbers in order, so whoever has read up to one has
-- every event below it. Deliveries begin with what comes after the migration.
CREATE TABLE webhook_cursor (
  singleton boolean PRIMARY KEY DEFAULT true,
  seq bigint NOT NULL,
  CONSTRAINT webhook_cursor_singleton CHECK (singleton)
);
INSERT INTO webhook_cursor (seq) SELECT coalesce(max(seq), 0) FROM events;

CREATE TABLE webhook_endpoints (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  url text NOT NULL,
  description text NOT NULL,
  events text[] NOT NULL,
  labels jsonb NOT NULL,
  state text NOT NULL DEFAULT 'enabled',
  reason text,
  secret bytea NOT NULL,
  old_secret bytea,
  old_until timestamptz,
  failures integer NOT NULL DEFAULT 0,
  failing_since timestamptz,
  not_before timestamptz NOT NULL DEFAULT now(),
  served_at timestamptz NOT NULL DEFAULT now(),
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT webhook_endpoints_state CHECK (state IN ('enabled', 'disabled')),
  CONSTRAINT webhook_endpoints_reason CHECK ((state = 'disabled') = (reason IS NOT NULL)),
  CONSTRAINT webhook_endpoints_old_secret CHECK ((old_secret IS NULL) = (old_until IS NULL))
);
CREATE INDEX webhook_endpoints_tenant ON webhook_endpoints (tenant_id, id);

CREATE TABLE webhook_deliveries (
  id bigint PRIMARY KEY,
  endpoint_id bigint NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
  tenant_id integer NOT NULL,
  seq bigint,
  message_id text NOT NULL,
  type text NOT NULL,
  body text NOT NULL,
  state text NOT NULL DEFAULT 'pending',
  tries integer NOT NULL DEFAULT 0,
  round smallint NOT NULL DEFAULT 0,
  next_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  CONSTRAINT webhook_deliveries_message UNIQUE (endpoint_id, message_id),
  CONSTRAINT webhook_deliveries_state CHECK (state IN ('pending', 'delivered', 'failed')),
  CONSTRAINT webhook_deliveries_next CHECK ((state = 'pending') = (next_at IS NOT NULL)),
  CONSTRAINT webhook_deliveries_finished CHECK ((state = 'pending') = (finished_at IS NULL))
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id, id);
CREATE INDEX webhook_deliveries_of_state ON webhook_deliveries (endpoint_id, state, id);
CREATE INDEX webhook_deliveries_of_type ON webhook_deliveries (endpoint_id, type, id);

CREATE TABLE webhook_tries (
  delivery_id bigint REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
  number integer,
  tenant_id integer NOT NULL,
  at timestamptz NOT NULL,
  milliseconds integer NOT NULL,
  status smallint,
  answer text,
  error text,
  PRIMARY KEY (delivery_id, number)
);
