"""Train a U-Net on any number of processes."""
