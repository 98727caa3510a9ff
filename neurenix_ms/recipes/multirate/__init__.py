"""Compare multirate forecasts of chaotic fields with those of a single-rate network."""
