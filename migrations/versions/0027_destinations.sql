-- Where a catalogue's published version is copied to, and how far that has come.
CREATE TABLE catalogue_destinations (
  catalogue_id bigint PRIMARY KEY REFERENCES catalogues (id),
  tenant_id integer NOT NULL REFERENCES tenants (id),
  place text NOT NULL,
  rule bytea NOT NULL,
  version integer NOT NULL,
  step text NOT NULL,
  reached text[] NOT NULL DEFAULT '{}',
  announced integer,
  before integer,
  counts jsonb NOT NULL DEFAULT '{}',
  error jsonb,
  attempts integer NOT NULL DEFAULT 0,
  next_at timestamptz,
  began_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  CONSTRAINT catalogue_destinations_step CHECK (step IN ('naming','copying','deleting','done'))
);
CREATE INDEX catalogue_destinations_waiting ON catalogue_destinations (tenant_id, next_at) WHERE next_at IS NOT NULL;

-- The objects of a place: which picture each one is, or is to become where `is_there` is false.
CREATE TABLE catalogue_copies (
  catalogue_id bigint NOT NULL REFERENCES catalogues (id),
  place text NOT NULL,
  name text COLLATE "C" NOT NULL,
  item text COLLATE "C" NOT NULL,
  variant text COLLATE "C" NOT NULL,
  rule bytea NOT NULL,
  sha256 bytea NOT NULL,
  is_there boolean NOT NULL DEFAULT false,
  PRIMARY KEY (catalogue_id, place, name)
);
CREATE INDEX catalogue_copies_item ON catalogue_copies (catalogue_id, place, item, variant);
CREATE INDEX catalogue_copies_waiting ON catalogue_copies (catalogue_id, place, name) WHERE NOT is_there;
