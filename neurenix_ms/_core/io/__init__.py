"""Read the files of `save` and `torch.save` without running anything they contain."""
