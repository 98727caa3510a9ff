"""Transport of densities: advection by a flow, and updates by fluxes that conserve mass locally."""

from neurenix_ms.transport.advection import Advection
from neurenix_ms.transport.conserving import MassConserving
from neurenix_ms.transport.fluxes import FluxConservation

__all__ = ["Advection", "FluxConservation", "MassConserving"]
