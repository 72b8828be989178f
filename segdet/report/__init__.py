"""Tables of the result records of runs."""
