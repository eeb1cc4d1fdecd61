"""The command line: one file per command, each a thin layer over one function of `fewgen.api`."""
