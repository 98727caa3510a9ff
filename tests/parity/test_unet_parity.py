"""The U-Net against arrays that the original code computed."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

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
    model = UNet(3, 1)
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
    with pytest.raises(ValueError, match=r"missing: .*up2\.conv\.double_conv\.3\.weight"):
        load_unet(state)


def test_a_left_over_entry_is_named(state):
    with pytest.raises(ValueError, match=r"left over.*another\.weight"):
        load_unet({**state, "another.weight": np.zeros(3)})


def test_a_misshapen_entry_is_named_with_both_shapes(state):
    state["up1.conv.double_conv.1.weight"] = np.zeros(3)
    with pytest.raises(
        ValueError, match=r"up1\.conv\.double_conv\.1\.weight must have shape \(64,\), got \(3,\)"
    ):
        load_unet(state)


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match=r"needs inc\.double_conv\.0\.weight, which is missing"):
        load_unet({"conv1.weight": np.zeros((3, 3))})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": "single"}, "block 'double', got 'single'"),
        ({"norm": "group"}, "norm 'batch', got 'group'"),
        ({"spatial_dims": 3}, "spatial_dims 2, got 3"),
        ({"kernel_size": 5}, "kernel_size 3, got 5"),
    ],
)
def test_a_network_without_a_counterpart_is_not_exported(options, words):
    with pytest.raises(ValueError, match=f"export_unet needs a UNet with {words}"):
        export_unet(UNet(1, 1, [4], **options))
