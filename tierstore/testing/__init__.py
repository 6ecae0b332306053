"""What a user needs to test a backend of their own: contract suite, faults, real servers."""
