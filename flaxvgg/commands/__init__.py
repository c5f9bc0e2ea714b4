"""The command line: one module a command; what it prints and writes."""
