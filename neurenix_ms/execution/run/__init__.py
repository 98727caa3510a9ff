"""Run a model tile by tile as its plan says."""
