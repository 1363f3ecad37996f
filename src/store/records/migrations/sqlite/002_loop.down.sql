DROP TABLE evaluations;
DROP TABLE feedback;
