"""Foreign formats that are torch's: files of `torch.save`, folders of DCP."""
