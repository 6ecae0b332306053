"""Writing and reading by torch.distributed.checkpoint."""
