//! Parses arguments, runs a command, turns its error into an exit code.

fn main() {}
