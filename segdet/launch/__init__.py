"""Lists of runs become processes."""
