"""A restored database compared with the store, and what the database server says of its own backups."""
