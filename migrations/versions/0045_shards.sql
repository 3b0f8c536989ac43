-- The keys of such images name the shard, and where in it they lie: services/core/storage/members.py.
ALTER TABLE jobs ADD COLUMN in_shards boolean NOT NULL DEFAULT false;
