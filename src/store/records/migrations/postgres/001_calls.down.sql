DROP TABLE cube;
DROP TABLE rollup;
DROP TABLE bodies;
DROP TABLE calls;
