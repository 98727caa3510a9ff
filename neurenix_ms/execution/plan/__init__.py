"""Plan how a model runs in tiles: its strides, receptive field and layers that need the whole input."""
