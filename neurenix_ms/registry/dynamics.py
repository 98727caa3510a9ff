"""Presets of time-steppers, recurrent networks and implicit fields."""

from typing import Any

from neurenix_ms.registry.preset import Preset


def _mlp(features: int, hidden: list[int]) -> dict[str, Any]:
    config = {"in_features": features, "out_features": features, "hidden": hidden}
    return {"class": "MLP", "config": config}


def _errors(features: int, strides: int) -> dict[str, Any]:
    config = {"in_features": features, "out_features": 2 * strides, "hidden": [32, 32]}
    return {"class": "MLP", "config": config}


DYNAMICS = [
    Preset(
        "mlp",
        "MLP",
        "three hidden layers of 128 units with ReLU",
        arguments={"in_features": 2, "out_features": 2},
    ),
    Preset(
        "time_stepper",
        "TimeStepper",
        "one stepper of vectors of two features: the state plus the change that an MLP predicts",
        "Liu, Kutz and Brunton 2020, 'Hierarchical deep learning of time-steppers', equation 5",
        {"network": _mlp(2, [128, 128, 128]), "step_size": 1},
    ),
    Preset(
        "standardized_network",
        "StandardizedNetwork",
        "an MLP of two features on states in units of their mean and deviation",
        arguments={
            "network": _mlp(2, [128, 128, 128]),
            "mean": [0.0, 0.0],
            "std": [1.0, 1.0],
            "scale": [1.0, 1.0],
        },
    ),
    Preset(
        "stride_errors",
        "StrideErrors",
        "a small MLP that predicts the errors of six strides from states of two features",
        arguments={
            "network": _errors(2, 6),
            "mean": [0.0, 0.0],
            "std": [1.0, 1.0],
        },
    ),
    Preset(
        "adaptive_time_stepper",
        "AdaptiveTimeStepper",
        "six steppers of vectors of two features, with strides that follow the state",
        "Hamid et al. 2023, 'Hierarchical deep learning-based adaptive time-stepping'",
        {
            "steppers": [
                {
                    "class": "TimeStepper",
                    "config": {"network": _mlp(2, [128, 128, 128]), "step_size": 2**k},
                }
                for k in range(6)
            ],
            "errors": {
                "class": "StrideErrors",
                "config": {"network": _errors(2, 6), "mean": [0.0, 0.0], "std": [1.0, 1.0]},
            },
            "tolerance": 0.01,
        },
    ),
    Preset(
        "hits",
        "HierarchicalTimeStepper",
        "eleven steppers of vectors of two features, with strides of 1 to 1024 steps; equal",
        "luckystarufo/multiscale_HiTS; Liu, Kutz and Brunton 2020, algorithm 1",
        {
            "steppers": [
                {
                    "class": "TimeStepper",
                    "config": {"network": _mlp(2, [128, 128, 128]), "step_size": 2**k},
                }
                for k in range(11)
            ]
        },
    ),
    Preset(
        "advection",
        "Advection",
        "a density in 2-D moved with a flow, by semi-Lagrangian steps; no parameters",
        "Nair and Machenhauer 2002, with Gauss points in place of polygons",
    ),
    Preset(
        "advection_flux",
        "Advection",
        "a density in 2-D moved with a flow, in flux form of fifth order; no parameters",
        "Shu 1998, ICASE 97-65, equation 2.10; Zalesak 1979",
        {"scheme": "flux", "substeps": 24},
    ),
    Preset(
        "flux_conservation",
        "FluxConservation",
        "a density in 2-D updated by fluxes of neighboring cells; no parameters",
        "Zalesak 1979",
    ),
    Preset(
        "mass_conserving_unet",
        "MassConserving",
        "a U-Net of a density and two velocities on a periodic grid, corrected to the mass of its input",
        arguments={
            "network": {
                "class": "UNet",
                "config": {
                    "in_channels": 3,
                    "out_channels": 1,
                    "features": [8, 16, 32],
                    "bilinear": False,
                    "norm": None,
                    "padding_mode": "circular",
                    "remember": False,
                },
            }
        },
    ),
    Preset(
        "fourier_latents",
        "FourierLatents",
        "the lowest 9, 6 and 3 modes of a field on 64 points; no parameters",
        "Dhingra and San 2026, arXiv 2601.14487, latent hierarchy",
        {"channels": 1, "size": [64], "modes": [9, 6, 3]},
    ),
    Preset(
        "linear_latents",
        "LinearLatents",
        "three and two learned features of states of three features",
        arguments={"num_inputs": 3, "num_features": [3, 2]},
    ),
    Preset(
        "msr_hine",
        "MultirateStepper",
        "an MLP of three features with recurrent predictions at two rates",
        "Dhingra and San 2026, arXiv 2601.14487",
        {
            "predictor": {
                "class": "MLP",
                "config": {"in_features": 9, "out_features": 3, "hidden": [128, 128, 128]},
            },
            "latents": {
                "class": "LinearLatents",
                "config": {"num_inputs": 3, "num_features": [3, 2]},
            },
            "periods": [1, 4],
        },
    ),
    Preset(
        "lstm_forecaster",
        "LSTMForecaster",
        "an LSTM of 128 units that predicts the change of a state",
        "Hochreiter and Schmidhuber 1997, 'Long short-term memory'",
        {"num_features": 2},
    ),
    Preset(
        "clockwork_rnn",
        "ClockworkRNN",
        "a recurrent network whose groups of units are updated at several rates",
        "Koutnik et al. 2014, 'A clockwork RNN'",
        {"num_features": 2},
    ),
    Preset(
        "echo_state_network",
        "EchoStateNetwork",
        "a random recurrent network whose readout is fitted by ridge regression",
        "Jaeger and Haas 2004, 'Harnessing nonlinearity'",
        {"num_features": 2},
    ),
    Preset(
        "nif",
        "NIF",
        "a field whose weights depend on parameters, for smooth fields; equal",
        "pswpswpsw/nif; Pan, Brunton and Kutz 2023, 'Neural implicit flow', section 2",
        {"parameter_dim": 1, "coordinate_dim": 1},
    ),
    Preset(
        "multiscale_nif",
        "MultiScaleNIF",
        "the same with sine layers, for fields with detail at many scales; equal",
        "pswpswpsw/nif; Pan, Brunton and Kutz 2023, section 2; Sitzmann et al. 2020",
        {"parameter_dim": 1, "coordinate_dim": 2, "shape_width": 128, "latent_dim": 3},
    ),
    Preset(
        "last_layer_nif",
        "LastLayerNIF",
        "a field whose last layer alone depends on parameters: modes and their coefficients; equal",
        "pswpswpsw/nif; Pan, Brunton and Kutz 2023, section 2",
        {"parameter_dim": 1, "coordinate_dim": 2, "latent_dim": 10},
    ),
    Preset(
        "normalized_nif",
        "Normalizer",
        "multiscale_nif on parameters, coordinates and values scaled to -1 to 1",
        arguments={
            "model": {
                "class": "MultiScaleNIF",
                "config": {
                    "parameter_dim": 1,
                    "coordinate_dim": 2,
                    "shape_width": 128,
                    "latent_dim": 3,
                },
            }
        },
    ),
]
