"""How long jobs keep their prompts, objects and records, and what deletes them then."""
