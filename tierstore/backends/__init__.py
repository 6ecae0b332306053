"""Backends that need nothing but the machine: memory and local files."""
