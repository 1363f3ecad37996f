DROP TABLE evaluations;
DROP TABLE feedback;
DROP INDEX calls_tags;
