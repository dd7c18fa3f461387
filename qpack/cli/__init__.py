"""The command line: one module per command. It parses, calls and prints; it decides nothing."""
