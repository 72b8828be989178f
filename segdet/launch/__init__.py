"""A list of runs, turned into processes."""
