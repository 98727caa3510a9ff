"""Compare a multiscale and a single-scale network on porous media."""
