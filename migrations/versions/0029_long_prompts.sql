-- Programs of the release before draw what is longer than one chunk as they always did: cut.
ALTER TABLE segments ADD COLUMN prompt_chunks smallint NOT NULL DEFAULT 1;
ALTER TABLE models ADD COLUMN long_prompts text;
