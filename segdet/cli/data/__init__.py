"""``segdet data``: one module per subcommand."""
