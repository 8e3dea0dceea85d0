//! Parses the command line, runs the sub-command, turns its error into an exit code.
fn main() {}
