DROP TABLE feedback;
DROP INDEX calls_tags;
