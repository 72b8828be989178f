"""The ``segdet`` command: one module per subcommand, for parsing and messages."""
