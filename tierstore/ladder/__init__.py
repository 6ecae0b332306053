"""Down the ladder to save, up the ladder to restore."""
