"""Policy around any backend: each wrapper is itself a backend."""
