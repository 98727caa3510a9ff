"""Forecast drifting density by advection and a U-Net that corrects it by fluxes."""
