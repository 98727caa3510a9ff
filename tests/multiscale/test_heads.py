"""Decoders over lists of feature maps: shapes at every size, tiles, gradients, messages."""

import pytest
import torch
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead as TorchvisionHead

from neurenix_ms import DeepLabHead, UNet, UPerHead
from neurenix_ms._core.dims import CONVOLVE
from neurenix_ms.backbones import Backbone
from neurenix_ms.execution import TiledModel

WIDTHS = [3, 5, 4]


def levels(size, channels=WIDTHS, dtype=torch.float64):
    return [
        torch.randn(2, c, *(max(1, n >> k) for n in size), dtype=dtype)
        for k, c in enumerate(channels)
    ]


@given(dims_and_sizes(1, 9))
def test_outputs_have_the_size_of_the_fine_feature_map(shape):
    dims, size = shape
    features = levels(size, dtype=torch.float32)
    options = {"hidden_channels": 4, "spatial_dims": dims}
    upper = UPerHead(WIDTHS, 2, bins=[1, 2], **options).eval()
    assert upper(features).shape == (2, 2, *size)
    for level, like in ((0, features[0]), (1, features[1]), (None, features[2])):
        head = DeepLabHead(WIDTHS, 2, dilations=[2], fine_level=level, **options).eval()
        assert head(features).shape == (2, 2, *like.shape[2:])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_levels_are_fused_as_if_concatenated(dims):
    head = UPerHead(WIDTHS, 2, hidden_channels=4, bins=[1, 2], norm="group", spatial_dims=dims)
    head, features = head.double().eval(), levels((9, 8, 6)[:dims])
    seen: list[Tensor] = []
    handle = head.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = head(features)
    handle.remove()
    stacked = torch.cat(seen, dim=1)
    fused = CONVOLVE[dims](stacked, head.fuse.weight, head.fuse.bias, padding=1)
    wanted = head.head(head.fuse_act(head.fuse_norm(fused)))
    torch.testing.assert_close(found, wanted)
    assert [y.shape[2:] for y in seen] == [features[0].shape[2:]] * 3


@pytest.mark.parametrize("size", [(13, 9), (40, 33)])
def test_without_a_fine_level_it_is_torchvisions_deeplab(size):
    ours = DeepLabHead(
        [6], 3, dilations=(2, 12, 24), fine_level=None, separable=False, hidden_channels=256
    ).eval()
    theirs = TorchvisionHead(6, 3, (2, 12, 24)).eval()
    values = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = torch.randn(1, 6, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours([x]), theirs(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradients_are_right(dims):
    features = [x[:1].requires_grad_() for x in levels((4, 3, 2)[:dims], [2, 2])]
    options = {"hidden_channels": 2, "norm": "group", "act": "tanh", "spatial_dims": dims}
    for head in (
        UPerHead([2, 2], 1, bins=[1], **options),
        DeepLabHead([2, 2], 1, dilations=[2], fine_channels=2, **options),
    ):
        head.double()
        assert torch.autograd.gradcheck(lambda *f, h=head: h(list(f)), features)


class Network(nn.Module):
    """An encoder and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.encoder = Backbone(UNet(1, 1, [3, 5], bottleneck_channels=4, norm=None))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


@pytest.mark.parametrize(
    "head",
    [
        lambda: UPerHead(WIDTHS, 2, hidden_channels=4, bins=[1, 2]),
        lambda: DeepLabHead(WIDTHS, 2, hidden_channels=4, dilations=[2]),
    ],
)
@pytest.mark.slow
def test_in_tiles_the_context_is_refused_by_name_or_runs_as_a_part(head):
    model = Network(head()).double().eval()
    x = torch.randn(1, 1, 48, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"head\.context"):
        TiledModel(model, 16, whole=())(x)
    with torch.no_grad():
        whole, tiled = model(x), TiledModel(model, 16, whole=("head.context",))(x)
    assert (whole - tiled).abs().max() <= 1e-10 * whole.std()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UPerHead([], 2), "in_channels must name at least one feature"),
        (lambda: UPerHead([3], 2, hidden_channels=0), "hidden_channels must be at least 1, got 0"),
        (lambda: UPerHead([3], 2, bins=[0]), r"bins\[0\] must be at least 1, got 0"),
        (lambda: UPerHead([3], 2)(levels((4, 4))), "expected 1 features, got 3"),
        (lambda: UPerHead([3, 3], 2)(levels((4, 4), [3, 3])[::-1]), "must come finest first"),
        (lambda: DeepLabHead([3], 2, fine_level=1), "fine_level must be at most 0, got 1"),
        (lambda: DeepLabHead([3], 2, fine_channels=0), "fine_channels must be at least 1, got 0"),
        (lambda: DeepLabHead([3, 3], 2)(levels((4, 4), [3, 3])[::-1]), "must come finest first"),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
