"""A state dict: its leaves, who saves which, and where stored bytes go."""
