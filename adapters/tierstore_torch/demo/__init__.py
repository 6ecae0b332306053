"""What `tierstore demo` trains: a byte-level transformer on the standard library's source."""
