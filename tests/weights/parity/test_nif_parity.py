"""Neural implicit flow against arrays that the original code computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.implicit import (
    NIF,
    LastLayerNIF,
    MultiScaleNIF,
    gradient,
    hessian,
    laplacian,
    time_derivative,
)
from neurenix_ms.weights import load_nif

DATA = Path(__file__).parent / "data"
CASES = {
    "plain": ("nif_plain_small.npz", "", NIF),
    "blocks": ("nif_multiscale_small.npz", "a.", MultiScaleNIF),
    "sine": ("nif_multiscale_small.npz", "b.", MultiScaleNIF),
    "last_layer": ("nif_lastlayer_small.npz", "", LastLayerNIF),
}


class Reference:
    """The arrays of one case, and the model that they belong to."""

    def __init__(self, name):
        file, prefix, self.cls = CASES[name]
        with np.load(DATA / file) as content:
            own = {k.removeprefix(prefix): content[k] for k in content if k.startswith(prefix)}
        self.config = json.loads(str(own.pop("config")))
        self.weights = {k.removeprefix("W."): v for k, v in own.items() if k.startswith("W.")}
        self.arrays = {k: torch.from_numpy(v) for k, v in own.items() if not k.startswith("W.")}

    def model(self):
        return load_nif(self.weights, self.config)

    def __getitem__(self, name):
        return self.arrays[name]


@pytest.fixture(params=CASES)
def reference(request):
    return Reference(request.param)


def off(ours, theirs):
    """Largest difference in units of the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_pairs_give_the_original_values(reference):
    model = reference.model()
    assert type(model) is reference.cls
    assert (model(reference["p"], reference["x"]) - reference["u"]).abs().max() < 3e-5
    u = model.double()(reference["p"].double(), reference["x"].double())
    assert (u - reference["u64"]).abs().max() < 1e-9


def test_a_grid_gives_the_original_values(reference):
    model = reference.model()
    p, x, u = (reference[f"grid.{name}"] for name in "pxu")
    assert (model.forward_grid(p, x) - u).abs().max() < 3e-5
    assert (model.forward_grid(p, x.expand(len(p), -1, -1)) - u).abs().max() < 3e-5
    for i in range(len(p)):
        assert (model.at(p[i])(x) - u[i]).abs().max() < 3e-5


def test_the_latent_vector_and_the_weights_are_the_original_ones(reference):
    model = reference.model()
    assert off(model.latent(reference["p"]), reference["latent"]) < 1e-5
    p = reference["p"][:4]
    if reference.cls is LastLayerNIF:
        assert off(model.coefficients(p), reference["wvec"]) < 1e-5
        assert off(model.coefficients(reference["p"]), reference["coef"]) < 1e-5
        assert off(model.basis(reference["x"]), reference["phi"]) < 1e-5
    else:
        assert off(model.weights(p), reference["wvec"]) < 1e-5


def test_first_and_second_derivatives_are_the_original_ones(reference):
    model = reference.model().double()
    p, x = (reference[name][:64].double() for name in "px")
    first, second = gradient(model, p, x), hessian(model, p, x)
    assert off(first, reference["d1"]) < 5e-5  # noise of their float32
    assert off(second, reference["d2"]) < 5e-5
    dims = slice(p.shape[1], None)
    expected = second[..., dims, dims].diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(laplacian(model, p, x), expected)
    torch.testing.assert_close(time_derivative(model, p, x), first[..., 0])
    low = reference.model()
    p, x = p.float(), x.float()
    assert off(gradient(low, p, x), reference["d1"]) < 1e-4
    assert off(hessian(low, p, x), reference["d2"]) < 1e-4


def test_settings_are_taken_as_text_and_tensors_as_arrays(reference):
    weights = {name: torch.from_numpy(value) for name, value in reference.weights.items()}
    model = load_nif(weights, json.dumps(reference.config))
    assert model.config == reference.model().config


def test_without_shortcuts_the_layers_only_follow_each_other():
    reference = Reference("plain")
    config = {**reference.config, "variant": "PNIF"}
    config["parameter_net"] = {**config["parameter_net"], "no_shortcut": True}
    model = load_nif(reference.weights, config)
    assert type(model) is NIF
    assert model.parameter_shortcut is False
    w = {name: torch.from_numpy(value) for name, value in reference.weights.items()}
    h = reference["p"]
    for name in ("first", "hidden0", "hidden1"):
        h = torch.nn.functional.silu(h @ w[f"pnet.{name}.w"] + w[f"pnet.{name}.b"])
    expected = h @ w["pnet.bottleneck.w"] + w["pnet.bottleneck.b"]
    torch.testing.assert_close(model.latent(reference["p"]), expected)


def changed(**parts):
    """The plain case with other entries."""
    reference = Reference("plain")
    weights, config = dict(reference.weights), json.loads(json.dumps(reference.config))
    for name in parts.pop("without", ()):
        del weights[name]
    weights |= parts.pop("with_", {})
    for name, value in parts.items():
        if isinstance(value, dict):
            config[name] |= value
        else:
            config[name] = value
    return weights, {k: v for k, v in config.items() if v is not None}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (changed(without=["pnet.hidden1.b"]), r"must have 'parameter_net.hidden.1.bias'"),
        (changed(without=["pnet.last.w"]), "must have pnet.last.w"),
        (changed(with_={"pnet.extra.w": np.zeros(1)}), "unexpected 'pnet.extra.w'"),
        (changed(with_={"snet.first.w": np.zeros(1)}), "unexpected 'snet.first.w'"),
        (
            changed(with_={"pnet.hidden0.w": np.zeros((3, 16))}),
            r"parameter_net.hidden.0.weight must have shape \(16, 16\), got \(16, 3\)",
        ),
        (
            changed(with_={"pnet.first.w": np.zeros(16)}),
            r"pnet.first.w must be a matrix, got shape \(16,\)",
        ),
        (
            changed(shape_net={"units": 13}),
            r"last.weight must have shape \(404, 1\), got \(349, 1\)",
        ),
        (changed(variant="CNN"), "variant must be one of .*, got 'CNN'"),
        (changed(shape_net=None), "config must have shape_net,"),
        (changed(variant="NIFMultiScale"), "config must have shape_net.omega_0,"),
        (
            changed(shape_net={"activation": "tanh"}),
            "one activation, got 'tanh' in shape_net and 'swish' in parameter_net",
        ),
    ],
)
def test_missing_and_unexpected_names_and_shape_mismatches_are_listed(entries, words):
    with pytest.raises(ValueError, match=words):
        load_nif(*entries)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net."])
def test_the_prefixes_of_tools_are_taken_off(prefix):
    plain = Reference("plain")
    wrapped = {f"{prefix}{name}": value for name, value in plain.weights.items()}
    expected = plain.model().state_dict()
    for given in (wrapped, {"state_dict": wrapped, "epoch": 1}):
        for name, value in load_nif(given, plain.config).state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nlayers": 10**9}, "shape_net.nlayers must be at most 1000, got 1000000000"),
        ({"nlayers": "two"}, "shape_net.nlayers must be an integer, got 'two'"),
        ({"units": 10**9}, "shape_net.units must be at most 65536"),
        ({"units": [3]}, "shape_net.units must be an integer"),
        ({"input_dim": None}, "shape_net.input_dim must be an integer, got None"),
    ],
)
def test_invalid_settings_raise_with_their_name(change, words):
    plain = Reference("plain")
    config = {**plain.config, "shape_net": {**plain.config["shape_net"], **change}}
    with pytest.raises(ValueError, match=words):
        load_nif(plain.weights, config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("not json", "config must be JSON, got 'not json'"),
        ("[" * 100_000, "config must be JSON"),
        ("[1, 2]", r"config must be a dict of settings, got \[1, 2\]"),
        ({"variant": ["NIF"]}, r"variant must be one of \['NIF', .*got \['NIF'\]"),
        ({"variant": "NIF", "shape_net": 3}, "config must have shape_net,"),
        (3, "config must be a Mapping or a string, got 3"),
    ],
)
def test_an_invalid_config_raises(config, words):
    with pytest.raises(ValueError, match=words):
        load_nif(Reference("plain").weights, config)
