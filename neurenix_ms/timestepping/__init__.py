"""Networks that advance a state by one stride, trained, selected and coupled over many strides."""

from neurenix_ms.timestepping.baselines import ClockworkRNN, EchoStateNetwork, LSTMForecaster
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.selection import Selection, select_strides
from neurenix_ms.timestepping.sequences import SequenceModel, fit_sequences
from neurenix_ms.timestepping.stepper import IntegratorStepper, TimeStepper
from neurenix_ms.timestepping.training import fit_hierarchy
from neurenix_ms.timestepping.windows import StandardisedNetwork

__all__ = [
    "ClockworkRNN",
    "EchoStateNetwork",
    "HierarchicalTimeStepper",
    "IntegratorStepper",
    "LSTMForecaster",
    "Selection",
    "SequenceModel",
    "StandardisedNetwork",
    "TimeStepper",
    "fit_hierarchy",
    "fit_sequences",
    "select_strides",
]
