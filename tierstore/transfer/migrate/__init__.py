"""Move objects from one store to another: planned by a state machine, carried out by workers."""
