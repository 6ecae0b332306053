"""The door: runs, checkpoints and tensors of a ladder as Python objects, without torch."""
