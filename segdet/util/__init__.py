"""Helpers that know nothing of models and data: errors, files, processes, cores."""
