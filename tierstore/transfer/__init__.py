"""The one verb: move blocks from here to there, checked."""
