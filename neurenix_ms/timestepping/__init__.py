"""Networks that advance a state by one stride, trained, selected and coupled over many strides."""

from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.stepper import IntegratorStepper, TimeStepper

__all__ = ["HierarchicalTimeStepper", "IntegratorStepper", "TimeStepper"]
