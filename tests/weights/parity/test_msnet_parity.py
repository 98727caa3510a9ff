"""MS-Net against arrays that the original code computed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.compat.ms_net import MS_Net, get_masks, rnd_array
from neurenix_ms.msnet import MSNet, coarsen, scale_masks
from neurenix_ms.training import MultiScaleLoss
from neurenix_ms.weights import load_msnet

DATA = Path(__file__).parent / "data" / "msnet_s3_f2_32.npz"


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA) as file:
        return {name: torch.from_numpy(file[name]) for name in file if file[name].dtype.kind == "f"}


@pytest.fixture
def state(arrays):
    start = "state_dict."
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def scales(arrays, name):
    return [arrays[f"{name}_{i}"].view(1, 1, *arrays[f"{name}_{i}"].shape[-3:]) for i in range(3)]


def test_loaded_weights_give_the_original_outputs_of_every_scale(arrays, state):
    model = load_msnet(state).eval()
    for y, expected in zip(
        model(scales(arrays, "x"), scales(arrays, "mask")), scales(arrays, "y"), strict=True
    ):
        assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_one_array_gives_the_original_scales_and_masks(arrays, state):
    *_, finest = scales(arrays, "x")
    for ours, theirs in zip(coarsen(finest, 3), scales(arrays, "x"), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(scale_masks(finest, 3), scales(arrays, "mask"), strict=True):
        torch.testing.assert_close(ours, theirs)
    model = load_msnet(state)
    alone = model(finest)
    both = model(scales(arrays, "x"), scales(arrays, "mask"))
    for a, b in zip(alone, both, strict=True):
        torch.testing.assert_close(a, b)


def test_the_loss_is_the_original_one(arrays):
    loss = MultiScaleLoss()
    outputs, targets = scales(arrays, "y"), scales(arrays, "x")
    torch.testing.assert_close(
        torch.stack(loss.per_scale(outputs, targets)),
        arrays["loss_scales"].float(),
        rtol=1e-5,
        atol=0,
    )
    total = arrays["loss_total"].float()
    torch.testing.assert_close(loss(outputs, targets), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(outputs, targets[-1]), total, rtol=1e-5, atol=0)


def test_sizes_are_read_off_the_arrays(state):
    model = load_msnet(state)
    wanted = {"num_scales": 3, "num_features": 1, "num_filters": 2, "filter_growth": 4}
    assert {name: model.config[name] for name in wanted} == wanted
    assert sum(p.numel() for p in model.parameters()) == 119_595


def test_a_list_of_models_alone_is_taken_too(state):
    bare = {name.removeprefix("models."): value for name, value in state.items()}
    load_msnet(bare)


def test_the_default_network_has_1_894_156_parameters():
    assert sum(p.numel() for p in MSNet().parameters()) == 1_894_156


def test_missing_and_unexpected_names_and_shape_mismatches_are_listed(state):
    with pytest.raises(ValueError, match=r"unexpected.*optimizer\.lr"):
        load_msnet({**state, "optimizer.lr": np.zeros(1)})
    short = dict(state)
    del short["models.1.body.block2.conv.bias"]
    with pytest.raises(ValueError, match=r"must have .*stages\.1\.layers\.2\.conv\.bias"):
        load_msnet(short)
    with pytest.raises(ValueError, match=r"stages\.2\.tail\.bias"):
        load_msnet({**state, "models.2.tail.0.bias": np.zeros(5)})
    with pytest.raises(ValueError, match=r"must have models\.0\.head\.conv\.weight"):
        load_msnet({})


def test_the_usage_example_runs():
    net = MS_Net(num_scales=3, num_features=1, num_filters=1, summary=False)
    x = rnd_array(size=16, scales=3)
    y = net(x, get_masks(x[-1], scales=3))
    assert [tuple(a.shape[2:]) for a in y] == [(4,) * 3, (8,) * 3, (16,) * 3]


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "model._orig_mod."])
def test_the_prefixes_of_tools_are_taken_off(prefix, state):
    expected = load_msnet(state).state_dict()
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    for given in (wrapped, {"state_dict": {**wrapped, "loss.scale": torch.ones(1)}, "epoch": 1}):
        for name, value in load_msnet(given).state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models.0.head.conv.weight": torch.zeros(())}, "must have 3 to 5 axes"),
        ({"models.2.head.conv.weight": torch.zeros(0, 1, 3, 3, 3)}, "no empty one"),
        (
            {"models.0.body.block999999999.conv.weight": torch.zeros(1)},
            "must have layers of models.0",
        ),
        ({"models.999999999.head.conv.weight": torch.zeros(1, 1, 1)}, "must have models"),
        ({"models.0.tail.0.weight": torch.zeros(())}, "tail.0.weight of several numbers"),
        ({"models.0.head.conv.weight": "text"}, "must be a tensor or an array, got 'text'"),
        (
            {"foreign": torch.zeros(1)},
            r"unexpected .*'foreign' \(also with the prefixes 'module\.'",
        ),
    ],
)
def test_an_invalid_state_dict_raises_quickly(change, words, state):
    with pytest.raises(ValueError, match=words):
        load_msnet({**state, **change})
