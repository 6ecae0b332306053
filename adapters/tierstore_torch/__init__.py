"""torch on top of tierstore: `Checkpointer`, and a reader and writer for DCP."""
