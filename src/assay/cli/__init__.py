"""The command line: a thin, lazy shell around the functions of `assay.verbs`."""
