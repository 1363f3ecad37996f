//! Hostile clients and hostile providers: bodies that bomb, prompts that stall, names that forge, figures that lie.
