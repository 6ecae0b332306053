"""The `tierstore` command, one file per subcommand."""
