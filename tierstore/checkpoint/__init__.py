"""What makes files a checkpoint: fragments, manifest, commit, launches, timeline."""
