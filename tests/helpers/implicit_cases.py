"""Small implicit models of every kind, with random values in every weight."""

import torch

from neurenix_ms.implicit import NIF, LastLayerNIF, MultiScaleNIF

SMALL = {"shape_width": 7, "parameter_width": 6, "latent_dim": 2}
SINE = {"omega_0": 5.0, "weight_init_factor": 0.5}
KINDS = {
    "NIF": (NIF, {}),
    "NIF-tanh": (NIF, {"act": "tanh", "parameter_shortcut": False}),
    "MultiScaleNIF": (MultiScaleNIF, SINE),
    "MultiScaleNIF-blocks": (MultiScaleNIF, SINE | {"residual_blocks": True}),
    "MultiScaleNIF-sine": (
        MultiScaleNIF,
        SINE | {"parameter_act": "sine", "parameter_omega_0": 3.0},
    ),
    "MultiScaleNIF-sine-blocks": (
        MultiScaleNIF,
        SINE
        | {"parameter_act": "sine", "parameter_omega_0": 3.0, "parameter_residual_blocks": True},
    ),
    "MultiScaleNIF-swish-blocks": (MultiScaleNIF, SINE | {"parameter_residual_blocks": True}),
    "LastLayerNIF": (LastLayerNIF, SINE),
    "LastLayerNIF-blocks": (LastLayerNIF, SINE | {"residual_blocks": True}),
}
WRITTEN = [name for name in KINDS if not name.startswith("LastLayer")]


def build(kind, parameter_dim=2, coordinate_dim=2, out_channels=2, **options):
    """A model of a kind, every parameter moved a little."""
    cls, own = KINDS[kind]
    model = cls(parameter_dim, coordinate_dim, out_channels, **SMALL | own | options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
