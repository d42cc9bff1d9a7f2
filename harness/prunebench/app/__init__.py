"""The use cases of prunebench, for the command line and for notebooks."""
