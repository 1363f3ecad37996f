DROP INDEX calls_tags;
