"""Two servers behind HAProxy. Needs Python's standard library alone."""
