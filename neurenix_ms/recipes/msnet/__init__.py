"""Train an MSNet to predict conduction through 3-D porous media."""
