"""Run a model tile by tile according to its plan."""
