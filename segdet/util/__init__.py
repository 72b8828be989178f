"""Helpers that do not depend on models and data: errors, files, tables, processes, cores."""
