"""Moving objects and checkpoints from one store to another: what, and in which order."""
