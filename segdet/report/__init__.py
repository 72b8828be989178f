"""Records of runs become tables."""
