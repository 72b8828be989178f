"""One run: its folder, record, provenance, checkpoints, loggers and cost."""
