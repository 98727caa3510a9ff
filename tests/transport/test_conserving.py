"""A network with the mass of its input."""

from pathlib import Path

import pytest
import torch
from torch import nn

import neurenix_ms as nms
from neurenix_ms.conservation import conserve_mass
from neurenix_ms.transport import MassConserving


def network(dims: int = 2) -> nms.UNet:
    return nms.UNet(3, 1, features=[4], norm=None, spatial_dims=dims)


@pytest.mark.parametrize("method", ["scale", "shift"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_mass_of_every_sample_stays(method: str, dims: int):
    model = MassConserving(network(dims), method).double()
    x = torch.rand(2, 3, *(9, 8, 7)[:dims], dtype=torch.double)
    y = model(x)
    assert y.shape == (2, 1, *x.shape[2:])
    torch.testing.assert_close(y.flatten(1).sum(1), x[:, 0].flatten(1).sum(1))
    torch.testing.assert_close(y, conserve_mass(model.network(x), x[:, :1], method=method))
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (model.spatial_dims, model.in_channels) == (dims, 3)


def test_units_are_those_of_the_channels():
    inner = nn.Conv2d(3, 1, 1)
    scaled, x = MassConserving(inner, "shift", scales=[2.0, 4.0, 8.0]), torch.rand(1, 3, 5, 4)
    wanted = 2 * inner(x / torch.tensor([2.0, 4.0, 8.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(scaled(x), conserve_mass(wanted, x[:, :1], method="shift"))


def test_cells_outside_of_the_mask_are_empty():
    x = torch.rand(1, 3, 6, 6)
    x[:, 2] = (torch.rand(6, 6) > 0.3).float()
    x[:, :1] *= x[:, 2:]
    y = MassConserving(network(), mask_channel=2)(x)
    assert (y[x[:, 2:] == 0] == 0).all()
    torch.testing.assert_close(y.sum(), x[:, 0].sum())


@pytest.mark.parametrize("method", ["scale", "shift"])
def test_the_mass_of_cells_of_unequal_area_stays(method: str):
    x = torch.rand(2, 3, 6, 6)
    x[:, 2] *= torch.rand(6, 6) > 0.3  # the area is 0 on land
    y = MassConserving(network(), method, mask_channel=2, area_channel=2)(x)
    mass = [(one * x[:, 2]).flatten(1).sum(1) for one in (y[:, 0], x[:, 0])]
    torch.testing.assert_close(*mass)
    assert (y[x[:, 2:] == 0] == 0).all()


def test_files_and_folders_keep_it(tmp_path: Path):
    model = MassConserving(network(), "shift", scales=[2.0, 1.0, 1.0], mask_channel=1).eval()
    x = torch.rand(1, 3, 8, 8)
    nms.save(model, tmp_path / "model.nx")
    model.save_pretrained(tmp_path / "folder")
    for again in (nms.load(tmp_path / "model.nx"), nms.from_pretrained(tmp_path / "folder")):
        assert torch.equal(again.eval()(x), model(x))
        assert again.config["scales"] == [2.0, 1.0, 1.0]


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match=r"method must be one of \['scale', 'shift'\], got 'sum'"):
        MassConserving(network(), "sum")
    with pytest.raises(ValueError, match=r"scales must not hold 0, got \[1.0, 0.0\]"):
        MassConserving(network(), scales=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"mask_channel must be at least 1, got 0"):
        MassConserving(network(), mask_channel=0)
    with pytest.raises(ValueError, match=r"area_channel must be at least 1, got 0"):
        MassConserving(network(), area_channel=0)
    with pytest.raises(
        ValueError, match=r"pred and reference must have one shape .*, got \(1, 2, 4"
    ):
        MassConserving(nn.Conv2d(3, 2, 1))(torch.rand(1, 3, 4, 4))
