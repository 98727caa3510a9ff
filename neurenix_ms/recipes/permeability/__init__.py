"""Train an MSNet to predict the permeability of periodic 3-D porous media."""
