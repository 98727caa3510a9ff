"""The U-Net against arrays that the original code computed."""

import csv
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neurenix_ms import UNet
from neurenix_ms.meter import parameter_table
from neurenix_ms.weights import export_unet, load_unet

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "unet_bilinear_base8.npz") as file:
        return dict(file)


@pytest.fixture
def state(arrays):
    return {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}


def test_loaded_weights_give_the_original_output(arrays, state):
    model = load_unet(state).eval()
    y = model(torch.from_numpy(arrays["input"]))
    torch.testing.assert_close(y, torch.from_numpy(arrays["output"]), atol=1e-4, rtol=0)


def test_sizes_are_read_off_the_arrays(state):
    model = load_unet(state)
    assert model.features == [8, 16, 32, 64]
    assert (model.in_channels, model.out_channels, model.bottleneck_channels) == (3, 1, 64)
    assert sum(p.numel() for p in model.parameters()) == 271_449


def test_export_gives_back_the_original_names_in_their_order(state):
    exported = export_unet(load_unet(state))
    assert list(exported) == list(state)
    assert all(torch.equal(exported[name], torch.as_tensor(state[name])) for name in state)


def test_the_mask_values_of_released_checkpoints_are_dropped(state):
    load_unet({**state, "mask_values": [0, 1]})


def _rows(name):
    with (DATA / name).open() as file:
        return [(row[0], int(row[1])) for row in csv.reader(file) if row[1].isdigit()]


def test_the_parameter_table_is_that_of_the_17_million_network():
    rows = _rows("unet_parameter_table.csv")
    model = UNet(3, 1, align_corners=True)
    assert [count for _, count in parameter_table(model)[:-1]] == [count for _, count in rows]
    assert parameter_table(model)[-1] == ("total", 17_267_393)
    trained = {name for name, _ in model.named_parameters()}
    names = [
        theirs
        for ours, theirs in zip(model.state_dict(), export_unet(model), strict=True)
        if ours in trained
    ]
    assert names == [name for name, _ in rows]


def test_the_parameter_table_of_single_blocks():
    rows = _rows("unet_singleconv_parameter_table.csv")
    table = parameter_table(UNet(3, 1, block="single"))
    assert [count for _, count in table] == [count for _, count in rows] + [7_085_633]


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("conv_bias", [True, False])
def test_every_variant_comes_back_from_its_export(bilinear, conv_bias):
    model = UNet(2, 3, [4, 8, 16], bilinear=bilinear, conv_bias=conv_bias, align_corners=True)
    twin = load_unet(export_unet(model)).eval()
    x = torch.randn(1, 2, 21, 19)
    assert twin.config | {"conv_bias": conv_bias} == model.config
    assert torch.equal(twin(x), model.eval()(x))


def test_a_missing_entry_is_named(state):
    del state["up2.conv.double_conv.3.weight"]
    with pytest.raises(ValueError, match=r"must have .*up2\.conv\.double_conv\.3\.weight"):
        load_unet(state)


def test_a_left_over_entry_is_named(state):
    with pytest.raises(ValueError, match=r"unexpected.*another\.weight"):
        load_unet({**state, "another.weight": np.zeros(3)})


def test_a_shape_mismatch_is_reported_with_both_shapes(state):
    state["up1.conv.double_conv.1.weight"] = np.zeros(3)
    with pytest.raises(
        ValueError, match=r"up1\.conv\.double_conv\.1\.weight must have shape \(64,\), got \(3,\)"
    ):
        load_unet(state)


def test_a_foreign_state_dict_raises():
    with pytest.raises(ValueError, match=r"needs inc\.double_conv\.0\.weight, which is missing"):
        load_unet({"conv1.weight": np.zeros((3, 3))})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "single"}, "block 'double', got 'single'"),
        ({"block": "residual"}, "block 'double', got 'residual'"),
        ({"norm": "group"}, "norm 'batch', got 'group'"),
        ({"norm": None}, "norm 'batch', got None"),
        ({"spatial_dims": 3}, "spatial_dims 2, got 3"),
        ({"kernel_size": 5}, "kernel_size 3, got 5"),
        ({"act": "gelu"}, "act 'relu', got 'gelu'"),
        ({"act": None}, "act 'relu', got None"),
        ({"act": nn.Tanh}, r"the layers it was built with, got .*Tanh\(\) for .*ReLU\(\)"),
        ({"norm": nn.InstanceNorm2d}, "the layers it was built with, got .*InstanceNorm2d"),
        ({"padding_mode": "reflect"}, "padding_mode 'zeros', got 'reflect'"),
        ({"dropout": 0.1}, "dropout 0.0, got 0.1"),
        ({"final_activation": "sigmoid"}, "final_activation None, got 'sigmoid'"),
        ({"final_activation": torch.tanh}, "final_activation None, got <built-in method tanh"),
        ({"residual_channel": 0}, "residual_channel None, got 0"),
        ({"align_corners": False}, "align_corners True, got False"),
    ],
)
def test_a_network_without_a_counterpart_is_not_exported(options, words):
    model = UNet(1, 1, [4], **{"align_corners": True, **options})
    with pytest.raises(ValueError, match=f"export_unet needs a UNet with {words}"):
        export_unet(model)


def test_every_setting_is_exported_or_raises():
    """What is exported computes the same in the network that its weights alone describe."""
    other = {"in_channels": 2, "out_channels": 3, "features": [4, 6], "spatial_dims": 1}
    other |= {"bilinear": False, "align_corners": False, "block": "single", "conv_bias": False}
    other |= {"bottleneck_channels": 6, "kernel_size": 1, "norm": "instance", "act": "silu"}
    other |= {"padding_mode": "circular", "dropout": 0.5, "final_activation": "relu"}
    other |= {"residual_channel": 0, "remember": False, "deep_supervision": True}
    other |= {"condition_channels": 3, "decoder_block": "single"}
    other |= {"decoder_norm": "group", "decoder_act": "prelu"}
    other |= {"down": "avg", "up": "nearest", "skip": "attention", "depth": 2, "stride": [2]}
    assert set(other) == set(inspect.signature(UNet).parameters)
    refused, messages = [], []
    for name, value in other.items():
        settings = {"in_channels": 1, "out_channels": 1, "features": [4], "align_corners": True}
        model = UNet(**{**settings, name: value}).eval()
        try:
            twin = load_unet(export_unet(model)).eval()
        except ValueError as error:
            refused.append(name)
            messages.append(str(error))
            continue
        x = torch.randn(1, model.in_channels, 16, 16)
        assert torch.equal(twin(x), model(x)), name
    assert all(f"{name} " in text for name, text in zip(refused, messages, strict=True))
    assert set(other) - set(refused) == {
        *("in_channels", "out_channels", "features", "bottleneck_channels"),
        *("bilinear", "conv_bias", "remember"),
    }


def test_the_corners_do_not_matter_to_transposed_convolutions():
    model = UNet(1, 1, [4], bilinear=False).eval()
    x = torch.randn(1, 1, 9, 7)
    assert torch.equal(load_unet(export_unet(model)).eval()(x), model(x))


def _wide_eps(model):
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eps = 0.1


def _dilated(model):
    next(m for m in model.modules() if isinstance(m, nn.Conv2d)).dilation = (2, 2)


def _patched(model):
    model.forward = lambda x: x


def _parametrized(model):
    nn.utils.parametrizations.weight_norm(model.head.conv)


def _replaced(model):
    model.head.act = nn.Sigmoid()


@pytest.mark.parametrize("change", [_wide_eps, _dilated, _patched, _parametrized, _replaced])
def test_a_network_that_was_changed_is_not_exported(change):
    model = UNet(1, 1, [4], align_corners=True)
    change(model)
    with pytest.raises(ValueError, match="needs a UNet with the layers it was built with, got"):
        export_unet(model)


class Doubled(UNet):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_with_its_own_forward_is_not_exported():
    with pytest.raises(ValueError, match="got Doubled with others"):
        export_unet(Doubled(1, 1, [4], align_corners=True))


def test_what_only_matters_in_training_is_exported():
    model = UNet(1, 1, [4], align_corners=True, conv_bias=None, act=nn.ReLU, remember=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    assert not [name for name in export_unet(model) if name.endswith("double_conv.0.bias")]


PREFIXES = ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod.", "model._orig_mod.net."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefixes_of_tools_are_taken_off(prefix, state):
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    expected = load_unet(state).state_dict()
    for given in (wrapped, wrapped | {"mask_values": [0, 1]}):
        for name, value in load_unet(given).state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize("prefix", ["model.", "net.", "model._orig_mod.", ""])
def test_the_weights_in_a_checkpoint_are_found(prefix, state):
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": {f"{prefix}{name}": value for name, value in state.items()},
    }
    if prefix:
        checkpoint["state_dict"] |= {"loss.weight": np.ones(2), "train_metrics.total": np.ones(1)}
    assert load_unet(checkpoint).features == [8, 16, 32, 64]


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda net: nn.ModuleDict({"net": net})]
)
def test_state_dicts_of_real_wrappers_are_taken(wrap):
    class Theirs(nn.Module):
        """A wrapper with the original names, to which it adds a prefix."""

        def __init__(self, entries):
            super().__init__()
            for name, value in entries.items():
                *path, leaf = name.split(".")
                at = self
                for part in path:
                    if not hasattr(at, part):
                        at.add_module(part, nn.Module())
                    at = getattr(at, part)
                at.register_buffer(leaf, value)

    model = UNet(1, 1, [4, 8], align_corners=True)
    assert load_unet(wrap(Theirs(export_unet(model))).state_dict()).features == [4, 8]


def test_the_message_lists_the_prefixes(state):
    with pytest.raises(
        ValueError, match=r"missing \(also with the prefixes 'module\.', 'model\.', "
    ):
        load_unet({f"encoder.{name}": value for name, value in state.items()})
    with pytest.raises(ValueError, match="strings as names, got 3"):
        load_unet({3: np.ones(2)})
    with pytest.raises(ValueError, match=r"state_dict must be a Mapping, got 'weights\.pth'"):
        load_unet("weights.pth")


def test_arrays_of_any_byte_order_and_stride_are_taken(state):
    odd = {k: np.asarray(v).astype(np.asarray(v).dtype.newbyteorder(">")) for k, v in state.items()}
    back = {k: v[::-1].copy()[::-1] if v.ndim else v for k, v in odd.items()}
    expected = load_unet(state).state_dict()
    for name, value in load_unet(back).state_dict().items():
        assert torch.equal(value, expected[name])
    with pytest.raises(
        ValueError, match=r"inc\.double_conv\.0\.weight must be a tensor or an array"
    ):
        load_unet({**state, "inc.double_conv.0.weight": "text"})
