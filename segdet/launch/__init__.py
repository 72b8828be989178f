"""Run experiments: read their files, and train and test their runs in processes."""
