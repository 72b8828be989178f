"""Records of runs, turned into tables."""
