"""The shard file: where each tensor lies in it, and the memory it is staged in."""
