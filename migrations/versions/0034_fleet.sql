-- A mixed fleet. A segment whose images must come from one reproducibility class names it; '' is any. A worker of the
-- release before does not look at it, so replace every worker before anybody asks for a class.
ALTER TABLE segments ADD COLUMN reproducibility_class text NOT NULL DEFAULT '';
-- When the worker expects to have rendered the claim; null if nothing like it was measured.
ALTER TABLE claims ADD COLUMN free_at timestamptz;
CREATE INDEX render_rates_device ON render_rates (device, model_revision);

-- The reproducibility classes that workers have served, kept when the workers are gone.
CREATE TABLE model_classes (
  model_revision text,
  reproducibility_class text,
  device_kind text NOT NULL,
  batch_size smallint NOT NULL,
  registered_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (model_revision, reproducibility_class)
);
