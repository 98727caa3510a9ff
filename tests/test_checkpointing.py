"""Gradient checkpointing changes memory only."""

import copy
import threading

import pytest
import torch
from cases import CASES, as_list, build, scalar
from ids import readable
from torch import nn

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet, enable_gradient_checkpointing
from neurenix_ms.meter import count_flops, peak_tensor_bytes

OURS = [c for c in CASES if c.name.startswith(("UNet", "PyramidN", "PyramidP", "MultiScaleModel"))]
OPTIONS = [
    {},
    {"bilinear": False},
    {"block": "residual", "act": "gelu"},
    {"block": "single", "norm": "instance", "act": "elu"},
    {"norm": "group", "act": "silu"},
    {"norm": None, "act": lambda: nn.ReLU(inplace=True)},
    {"norm": lambda c: nn.BatchNorm2d(c, momentum=None), "act": "leaky_relu"},
    {"dropout": 0.3},
    {"act": nn.Hardswish},
]


def train_step(model, x, on):
    torch.manual_seed(3)
    with enable_gradient_checkpointing(on):
        out = model(x)
    scalar(out).backward()
    return out


def assert_same(model, x):
    twin = copy.deepcopy(model)
    plain, spared = train_step(model, x, False), train_step(twin, x, True)
    assert all(torch.equal(a, b) for a, b in zip(as_list(plain), as_list(spared), strict=True))
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.name)
def test_output_gradients_and_statistics_are_those_of_a_plain_run(case):
    assert_same(build(case), case.inputs(case.size(13)))


@pytest.mark.parametrize("options", OPTIONS, ids=readable)
def test_whatever_the_blocks_are_made_of(options):
    assert_same(UNet(3, 1, [4, 8, 16], **options), torch.randn(2, 3, 21, 26))


def test_under_autocast_too():
    model = UNet(3, 1, [4, 8])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(model, torch.randn(2, 3, 21, 26))


def test_several_steps_inside_one_use():
    model = UNet(1, 1, [4, 8])
    twin = copy.deepcopy(model)
    xs = torch.randn(3, 2, 1, 16, 16)
    with enable_gradient_checkpointing():
        for x in xs:
            scalar(twin(x)).backward()
    for x in xs:
        scalar(model(x)).backward()
    assert all(
        torch.equal(a.grad, b.grad)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_backward_can_run_twice():
    model = UNet(1, 1, [4, 8])
    with enable_gradient_checkpointing():
        loss = scalar(model(torch.randn(2, 1, 16, 16)))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(model.parameters(), once, strict=True))


def test_second_derivatives_are_those_of_a_plain_run():
    model = UNet(1, 1, [2, 2], norm="group", act="tanh").double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty(on):
        with enable_gradient_checkpointing(on):
            y = model(x)
        (g,) = torch.autograd.grad(scalar(y), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    torch.testing.assert_close(penalty(True), penalty(False))


def test_a_foreign_network_runs_under_a_checkpoint_with_its_statistics_moved_once():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert_same(MultiScaleModel([1, 0.5], network), torch.randn(2, 3, 20, 24))


def test_a_foreign_network_keeps_less():
    layers = [
        m for _ in range(6) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    model = MultiScaleModel([1, 0.5], nn.Sequential(*layers), "sum")
    x = torch.randn(1, 8, 64, 64)
    peaks = [peak_tensor_bytes(lambda on=on: train_step(model, x, on)) for on in (True, False)]
    assert peaks[0] < 0.8 * peaks[1]


def peaks_of_the_17_million_network(call):
    model = UNet(3, 1, remember=False)
    x = torch.randn(1, 3, 384, 384)
    return [peak_tensor_bytes(lambda on=on: call(model, x, on)) for on in (False, True)]


def forward_only(model, x, on):
    with enable_gradient_checkpointing(on):
        return model(x)


@pytest.mark.slow
def test_a_forward_pass_of_the_17_million_network_peaks_at_0_60():
    plain, spared = peaks_of_the_17_million_network(forward_only)
    assert spared < 0.60 * plain


@pytest.mark.slow
def test_a_train_step_of_the_17_million_network_peaks_at_0_60():
    plain, spared = peaks_of_the_17_million_network(train_step)
    assert spared < 0.60 * plain


def test_no_convolution_runs_twice():
    model = UNet(3, 1, [8, 16], remember=False)
    x = torch.randn(1, 3, 32, 32)
    plain, spared = (count_flops(lambda on=on: train_step(model, x, on)) for on in (False, True))
    assert plain == spared


def test_the_switch_nests_and_ends():
    model = PyramidNetwork(1, 1, 3, 8, remember=False)
    x = torch.randn(1, 1, 64, 64)

    def peak(call):
        model.zero_grad()  # all steps create their gradients
        return peak_tensor_bytes(lambda: scalar(call()).backward())

    def inner_off():
        with enable_gradient_checkpointing(), enable_gradient_checkpointing(False):
            return model(x)

    def inner_ended():
        with enable_gradient_checkpointing():
            with enable_gradient_checkpointing(False):
                pass
            return model(x)

    plain = peak(lambda: model(x))
    assert peak(inner_off) == plain
    assert peak(inner_ended) < plain


def test_one_switch_can_be_used_again_inside_itself():
    switch = enable_gradient_checkpointing()
    with switch, switch:
        pass
    with switch:
        UNet(1, 1, [4])(torch.zeros(2, 1, 8, 8))


def test_other_threads_are_not_switched():
    model = UNet(1, 1, [8, 8], remember=False)
    x = torch.randn(1, 1, 64, 64)
    peaks = []

    def other():
        peaks.append(peak_tensor_bytes(lambda: scalar(model(x)).backward()))

    with enable_gradient_checkpointing():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        peaks.append(peak_tensor_bytes(lambda: scalar(model(x)).backward()))
    assert peaks[1] < peaks[0]


def test_without_grad_mode_nothing_changes():
    model = UNet(1, 1, [4, 8]).eval()
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = model(x)
        with enable_gradient_checkpointing():
            assert torch.equal(model(x), expected)


def test_an_error_inside_leaves_the_switch_off():
    model = UNet(1, 1, [4, 8])
    with pytest.raises(ValueError, match="at least 4"), enable_gradient_checkpointing():
        model(torch.zeros(1, 1, 2, 2))
    assert_same(model, torch.randn(2, 1, 16, 16))


def test_a_feature_map_changed_in_place_raises_instead_of_a_wrong_gradient():
    model = UNet(1, 1, [4], norm=None)
    kept = []
    model.level.encode.layers[0].conv.register_forward_hook(lambda m, i, o: kept.append(o))
    with enable_gradient_checkpointing():
        y = model(torch.randn(1, 1, 8, 8))
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an in-?place operation"):
        scalar(y).backward()


def test_entering_inside_a_compiled_function_raises():
    model = UNet(1, 1, [4])

    @torch.compile(fullgraph=True, backend="eager")
    def inside(x):
        with enable_gradient_checkpointing():
            return model(x)

    with pytest.raises(Exception, match="must be entered outside the compiled function"):
        inside(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: UNet(2, 1, [4, 8]), id="UNet"),
        pytest.param(
            lambda: PyramidNetwork(2, 1, 3, 4), marks=pytest.mark.slow, id="PyramidNetwork"
        ),
    ],
)
@pytest.mark.slow
def test_a_compiled_step_has_the_gradients_of_an_eager_one(make):
    torch.compiler.reset()
    model = make().double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for size in ((16, 16), (21, 18)):
        x = torch.randn(2, 2, *size, dtype=torch.float64)
        train_step(model, x, False)
        train_step(compiled, x, True)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        # a bias before a batch norm has gradient 0, so compare absolutely
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-9, msg=name)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def switched_step(model: torch.nn.Module, x: torch.Tensor, enabled: bool) -> list[torch.Tensor]:
    model.zero_grad()
    with enable_gradient_checkpointing(enabled):
        loss = model(x).square().mean()
    loss.backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize(
    ("model", "size", "most"),
    [
        (lambda: PyramidNetwork(3, 1, num_levels=4, base_channels=32), (96, 80), 0.80),
        (lambda: PyramidNetwork(3, 1, 4, 32, remember=False), (96, 80), 0.75),
        (lambda: UNet(3, 1, [8, 16, 32]), (96, 96), 0.62),
    ],
    ids=["pyramid", "pyramid-without-features", "unet"],
)
def test_kept_features_cost_no_memory_and_change_no_gradient(model, size, most):
    network, x = model(), torch.randn(2, 3, *size)
    twin = copy.deepcopy(network)
    plain = peak_tensor_bytes(lambda: switched_step(network, x, False))
    assert peak_tensor_bytes(lambda: switched_step(twin, x, True)) <= most * plain
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("norm", ["batch", "instance", "group", None])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_features_made_again_are_those_of_the_forward_pass_and_have_its_gradients(norm, act):
    plain = UNet(1, 1, [4, 8], norm=norm, act=act, dropout=0.2).double()
    switched = copy.deepcopy(plain)
    x = torch.randn(2, 1, 13, 17, dtype=torch.float64)
    for network, enabled in ((plain, False), (switched, True)):
        torch.manual_seed(0)
        with enable_gradient_checkpointing(enabled):
            out = network(x)
        maps = [*network.get_encoder_features(), *network.get_decoder_features()]
        (out.square().sum() + sum(y.pow(3).sum() for y in maps)).backward()
    pairs = zip(plain.named_buffers(), switched.named_buffers(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    with torch.no_grad():
        for a, b in zip(
            plain.get_encoder_features() + plain.get_decoder_features(),
            switched.get_encoder_features() + switched.get_decoder_features(),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    for a, b in zip(plain.parameters(), switched.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_forward_features_are_the_encoded_feature_maps_of_a_forward():
    model, x = UNet(1, 1, [4, 8]).eval(), torch.randn(1, 1, 13, 17)
    model(x)
    expected = model.get_encoder_features()
    model.clear_features()
    for a, b in zip(model.forward_features(x), expected, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="no cached features"):
        model.get_encoder_features()
