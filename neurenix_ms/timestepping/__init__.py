"""Neural time-steppers: train, select and couple networks that advance a state by one stride."""

from neurenix_ms._core.deprecation import renamed_classes
from neurenix_ms.timestepping.adaptive import AdaptiveTimeStepper, StrideErrors
from neurenix_ms.timestepping.baselines import ClockworkRNN, EchoStateNetwork, LSTMForecaster
from neurenix_ms.timestepping.hierarchy import HierarchicalTimeStepper
from neurenix_ms.timestepping.latents import FourierLatents, LinearLatents
from neurenix_ms.timestepping.multirate import MultirateStepper
from neurenix_ms.timestepping.rollouts import fit_rollouts
from neurenix_ms.timestepping.selection import Selection, select_strides
from neurenix_ms.timestepping.sequences import SequenceModel, fit_sequences
from neurenix_ms.timestepping.stepper import IntegratorStepper, TimeStepper
from neurenix_ms.timestepping.stride_errors import fit_adaptive
from neurenix_ms.timestepping.training import fit_hierarchy
from neurenix_ms.timestepping.windows import StandardizedNetwork

__all__ = [
    "AdaptiveTimeStepper",
    "ClockworkRNN",
    "EchoStateNetwork",
    "FourierLatents",
    "HierarchicalTimeStepper",
    "IntegratorStepper",
    "LSTMForecaster",
    "LinearLatents",
    "MultirateStepper",
    "Selection",
    "SequenceModel",
    "StandardizedNetwork",
    "StrideErrors",
    "TimeStepper",
    "fit_adaptive",
    "fit_hierarchy",
    "fit_rollouts",
    "fit_sequences",
    "select_strides",
]

__getattr__ = renamed_classes(__name__, {"StandardisedNetwork": "StandardizedNetwork"})
