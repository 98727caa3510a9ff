"""Compare adaptive strides with single and coupled ones, by error and calls of networks."""
