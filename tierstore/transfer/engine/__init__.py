"""The one engine that moves objects: a state machine, its workers and its journal."""
