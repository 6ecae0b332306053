"""Import and export: between tierstore's checkpoints and the files that other tools read."""
