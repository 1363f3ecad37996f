-- Tags that few calls have are found by an index. Partitions made from now on have it; those that are there are read day by day as
-- before until they are dropped, since building it for a large log could take longer than a batch may.
CREATE INDEX calls_tags ON ONLY calls USING gin (tags jsonb_path_ops) WHERE tags <> '{}';
