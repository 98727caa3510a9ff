"""Implicit fields against their definitions, their own pairs, and finite differences."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from implicit_cases import KINDS, WRITTEN, build
from sizes_for import dims_and_sizes  # noqa: F401  the profile of the suite
from torch import nn
from torch._dynamo.utils import counters

from neurenix_ms import load, save
from neurenix_ms._core.config import is_plain
from neurenix_ms.implicit import (
    NIF,
    LastLayerNIF,
    MultiScaleNIF,
    Normalizer,
    gradient,
    hessian,
    laplacian,
    time_derivative,
)
from neurenix_ms.meter import peak_tensor_bytes

EVERY = pytest.mark.parametrize("kind", KINDS)


def pairs(n=9, dtype=torch.float64):
    return torch.randn(n, 2, dtype=dtype), torch.rand(n, 2, dtype=dtype)


def close(a, b):
    torch.testing.assert_close(a, b)


@EVERY
def test_a_grid_is_every_parameter_with_every_point(kind):
    model = build(kind).double()
    p, x = pairs(5)
    grid = model.forward_grid(p[:3], x)
    assert grid.shape == (3, 5, 2)
    for t in range(3):
        close(grid[t], model(p[t].expand(5, 2), x))
        close(model.at(p[t])(x), grid[t])
        close(model.at(p[t : t + 1])(x.view(5, 1, 2)), grid[t].view(5, 1, 2))


@EVERY
def test_every_parameter_may_have_a_mesh_of_its_own(kind):
    model = build(kind).double()
    p = pairs(3)[0]
    meshes = torch.rand(3, 4, 2, dtype=torch.float64)
    grid = model.forward_grid(p, meshes)
    for t in range(3):
        close(grid[t], model.forward_grid(p[t : t + 1], meshes[t])[0])
    ragged = [meshes[0], meshes[1, :1], meshes[2, :3]]
    fields = model.forward_grid(p, ragged)
    for t, (field, mesh) in enumerate(zip(fields, ragged, strict=True)):
        close(field, grid[t, : len(mesh)])


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.sampled_from(list(KINDS)))
def test_chunks_change_nothing(chunk_size, num_parameters, num_points, kind):
    model = build(kind).double()
    p, x = pairs(num_parameters)[0], pairs(num_points)[1]
    grid = model.forward_grid(p, x)
    close(model.forward_grid(p, x, chunk_size=chunk_size), grid)
    meshes = x.expand(num_parameters, -1, -1)
    close(model.forward_grid(p, meshes, chunk_size=chunk_size), grid)
    ragged = model.forward_grid(p, list(meshes), chunk_size=chunk_size)
    close(torch.stack(ragged), grid)
    q, y = pairs(num_points)
    close(model(q, y, chunk_size=chunk_size), model(q, y))


def test_chunks_bound_the_memory():
    model = NIF(1, 1, shape_width=32)
    p, x = torch.rand(2000, 1), torch.rand(2000, 1)
    with torch.no_grad():
        whole = peak_tensor_bytes(lambda: model(p, x))
        assert peak_tensor_bytes(lambda: model(p, x, chunk_size=200)) < whole / 5
        whole = peak_tensor_bytes(lambda: model.forward_grid(p[:10], x))
        some = peak_tensor_bytes(lambda: model.forward_grid(p[:10], x, chunk_size=500))
        assert some < whole / 5


def test_no_pair_gets_weights_of_its_own():
    model = NIF(1, 1, shape_width=64, shape_depth=4, latent_dim=3)
    p, x = torch.rand(1000, 1), torch.rand(1000, 1)
    with torch.no_grad():
        assert peak_tensor_bytes(lambda: model(p, x)) < 1000 * model.shape.num_weights * 4 / 8


@pytest.mark.parametrize("kind", WRITTEN)
def test_weights_are_linear_in_the_latent_vector(kind):
    model = build(kind).double()
    p = pairs(3)[0]
    z, w = model.latent(p), model.weights(p)
    close(w, z @ model.last.weight.mT + model.last.bias)
    matrices, biases = model.shape.slices()
    assert matrices[0].start == 0
    assert biases[-1].stop == model.shape.num_weights == w.shape[1]


@EVERY
def test_gradients_are_right(kind):
    model = build(kind, shape_width=3, parameter_width=3).double()
    p, x = (value.requires_grad_() for value in pairs(2))
    parameters = dict(model.named_parameters())

    def call(p, x, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(model, state, (p, x))

    assert torch.autograd.gradcheck(call, (p, x, *parameters.values()))
    assert torch.autograd.gradgradcheck(model, (p, x))

    def grid(p, x, *values):
        for parameter, value in zip(parameters, values, strict=True):
            assert model.get_parameter(parameter) is value
        return model.forward_grid(p, x)

    assert torch.autograd.gradcheck(grid, (p, x, *parameters.values()))


@EVERY
def test_derivatives_are_those_of_finite_differences(kind):
    model = build(kind).double()
    p, x = pairs(4)
    h = 1e-5

    def moved(i, by):
        q = torch.cat([p, x], 1)
        q[:, i] += by
        return q[:, :2], q[:, 2:]

    first, second = gradient(model, p, x), hessian(model, p, x)
    assert first.shape == (4, 2, 4)
    assert second.shape == (4, 2, 4, 4)
    for i in range(4):
        slope = (model(*moved(i, h)) - model(*moved(i, -h))) / (2 * h)
        torch.testing.assert_close(first[..., i], slope, rtol=1e-6, atol=1e-6)
        bend = (gradient(model, *moved(i, h)) - gradient(model, *moved(i, -h))) / (2 * h)
        torch.testing.assert_close(second[..., i, :], bend, rtol=1e-5, atol=1e-5)
    close(second, second.mT)
    close(laplacian(model, p, x), second[..., 2, 2] + second[..., 3, 3])
    for axis in (0, 1, -1):
        close(time_derivative(model, p, x, axis), first[..., :2][..., axis])


def test_residuals_of_equations_train_the_weights():
    model = build("NIF").double()
    p, x = pairs(4)
    residual = time_derivative(model, p, x) - laplacian(model, p, x)
    residual.square().mean().backward()
    # a constant added to the field is in no derivative
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert grads["parameter_net.first.weight"].abs().max() > 0


@EVERY
def test_state_dict_pickle_and_deepcopy_give_the_same_model(kind):
    model = build(kind)
    p, x = pairs(dtype=torch.float32)
    expected = model(p, x)
    twin = type(model)(**model.config)
    assert is_plain(model.config)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    for same in (twin, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(same(p, x), expected)
    fixed = model.at(p[0])
    copies = (pickle.loads(pickle.dumps(fixed)), copy.deepcopy(fixed))
    assert all(torch.equal(same(x), fixed(x)) for same in copies)


@EVERY
def test_a_file_gives_the_model_back(kind, tmp_path):
    model = build(kind)
    field = Normalizer(model, "standard").fit(*pairs(dtype=torch.float32), torch.randn(9, 2))
    p, x = pairs(dtype=torch.float32)
    for one in (model, field):
        save(one, tmp_path / "model.nx")
        again = load(tmp_path / "model.nx")
        assert type(again) is type(one)
        assert torch.equal(again(p, x), one(p, x))


@EVERY
def test_every_parameter_gets_a_gradient_and_the_input_stays(kind):
    model = build(kind)
    p, x = pairs(1, dtype=torch.float32)
    before = p.clone(), x.clone()
    for call in (model.forward, model.forward_grid):
        model.zero_grad()
        (call(p, x) * torch.tensor([1.0, -2.0])).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert torch.equal(p, before[0])
    assert torch.equal(x, before[1])


@EVERY
def test_strides_of_the_input_do_not_matter(kind):
    model = build(kind).double()
    p, x = pairs()
    close(model(p.mT.contiguous().mT, x.mT.contiguous().mT), model(p, x))
    close(model.forward_grid(p, x.flip(0).mT.contiguous().mT), model.forward_grid(p, x.flip(0)))


@EVERY
def test_bf16_autocast_stays_close(kind):
    model = build(kind)
    p, x = pairs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(p, x), model.forward_grid(p, x)
    for y, reference in zip(low, (model(p, x), model.forward_grid(p, x)), strict=True):
        # sine layers multiply the rounding of their phases by omega
        assert (y.float() - reference).abs().mean() <= 0.2 * reference.abs().mean() + 1e-3


@pytest.mark.parametrize("kind", ["NIF", "MultiScaleNIF-blocks", "LastLayerNIF"])
def test_compiled_without_a_break_it_gives_the_same_for_any_number(kind):
    torch.compiler.reset()
    counters.clear()
    model = build(kind)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for n in (9, 12, 10):
        p, x = pairs(n, dtype=torch.float32)
        close(compiled(p, x), model(p, x))
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_fixed_field_is_exported_for_any_number_of_points():
    fixed = build("MultiScaleNIF-blocks").at(torch.zeros(2))
    n = torch.export.Dim("n", min=2)
    exported = torch.export.export(fixed, (torch.rand(8, 2),), dynamic_shapes=({0: n},)).module()
    x = torch.rand(13, 2)
    close(exported(x), fixed(x))


def test_starts_are_the_published_ones():
    model = NIF(1, 1, shape_width=50, parameter_width=50)
    for name, value in model.named_parameters():
        assert value.abs().max() <= 0.2, name
    assert model.last.bias.std().item() == pytest.approx(0.088, rel=0.05)  # of a normal cut at 2
    model = MultiScaleNIF(1, 3, shape_width=40, omega_0=20.0, latent_dim=6)
    assert model.last.weight.abs().max() <= 0.01
    first, hidden = (model.last.bias[m] for m in model.shape.slices()[0][:2])
    assert first.abs().max() <= 1 / 3
    assert hidden.abs().max() <= (6 / 40) ** 0.5 / 20
    assert hidden.abs().max() > 0.9 * (6 / 40) ** 0.5 / 20


def test_blocks_and_layers_are_written_as_published():
    model = build("MultiScaleNIF-swish-blocks", parameter_depth=1).double()
    p = pairs(3)[0]
    net = model.parameter_net
    h = nn.functional.silu(net.first(p))
    first, second = net.hidden[0]
    h = nn.functional.silu(h + second(nn.functional.silu(first(h))))
    close(model.latent(p), net.bottleneck(h))


@pytest.mark.parametrize("method", ["minmax", "standard"])
def test_a_normalizer_scales_and_gives_physical_units_back(method):
    p, x, heat = (torch.rand(n, m).double() for n, m in ((6, 2), (50, 2), (6, 50)))
    p, x = 300 + 20 * p, 1e-3 * x
    u = torch.stack([1e5 * heat, torch.full_like(heat, 7.0)], -1)
    field = Normalizer(build("NIF"), method).double().fit(p, x, u)
    for name, value in (("p", p), ("x", x), ("u", u)):
        scaled = field.scaled(name, value).flatten(0, -2)
        if method == "minmax":
            wanted = torch.stack([scaled.amin(0), scaled.amax(0)]).abs()
        else:
            wanted = torch.stack([1 - scaled.mean(0), scaled.std(0, correction=0)])
        varied = wanted if name != "u" else wanted[:, :1]
        close(varied, torch.ones_like(varied))
    assert field.scaled("u", u)[..., 1].abs().max() == 0
    close(field.physical(field.scaled("u", u)), u)
    scaled_p, scaled_x = field.scaled("p", p), field.scaled("x", x)
    grid = field.forward_grid(p, x)
    close(grid, field.physical(field.model.forward_grid(scaled_p, scaled_x)))
    close(field(p, x[:6]), grid[torch.arange(6), torch.arange(6)])
    close(field.at(p[1])(x), grid[1])
    close(field.latent(p), field.model.latent(scaled_p))
    ragged = field.forward_grid(p[:2], [x[:3], x[:5]])
    close(ragged[1], grid[1, :5])
    lists = Normalizer(build("NIF"), method).double().fit(p, [x[:20], x[20:]], list(u))
    for name, value in field.named_buffers(recurse=False):
        close(lists.get_buffer(name), value)


def test_derivatives_of_a_normalized_field_are_in_physical_units():
    field = Normalizer(build("NIF")).double()
    p, x = pairs()
    field.fit(10 * p, 0.1 * x, torch.randn(9, 2, dtype=torch.float64))
    scale = torch.cat([field.p_scale, field.x_scale])
    inner = gradient(field.model, field.scaled("p", p), field.scaled("x", x))
    close(gradient(field, p, x), inner / scale * field.u_scale[:, None])


def nan(*shape):
    value = torch.zeros(shape)
    value[-1] = torch.nan
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NIF(0, 1), "parameter_dim must be at least 1, got 0"),
        (lambda: NIF(1, 0), "coordinate_dim must be at least 1, got 0"),
        (lambda: NIF(1, 1, 0), "out_channels must be at least 1, got 0"),
        (lambda: NIF(1, 1, shape_width=0), "shape_width must be at least 1, got 0"),
        (lambda: MultiScaleNIF(1, 1, shape_depth=0), "shape_depth must be at least 1, got 0"),
        (lambda: LastLayerNIF(1, 1, latent_dim=0), "latent_dim must be at least 1, got 0"),
        (lambda: NIF(1, 1, act="cos"), "act must be one of .*, got 'cos'"),
        (lambda: MultiScaleNIF(1, 1, parameter_act="cos"), "parameter_act must be .*, got 'cos'"),
        (
            lambda: NIF(1, 1, shape_width=3, shape_nodes=[[0], [1], [3]]),
            r"shape_nodes must name one or more units below 3, each once, for each of 3 layers, "
            r"got \[\[0\], \[1\], \[3\]\]",
        ),
        (lambda: NIF(1, 1, shape_nodes=[[0], [], [1]]), "shape_nodes must name one or more"),
        (
            lambda: NIF(2, 1)(torch.zeros(3, 1), torch.zeros(3, 1)),
            r"p must have shape \(N, 2\) for parameter_dim=2, got shape \(3, 1\)",
        ),
        (
            lambda: NIF(1, 2)(torch.zeros(3, 1), torch.zeros(3)),
            r"x must have shape \(N, 2\) for coordinate_dim=2, got shape \(3,\)",
        ),
        (
            lambda: NIF(1, 1)(torch.zeros(3, 1), torch.zeros(4, 1)),
            "p and x must be pairs of equal number, got 3 and 4; forward_grid evaluates every",
        ),
        (
            lambda: NIF(1, 1)(torch.zeros(3, 1), torch.zeros(3, 1), chunk_size=0),
            "chunk_size must be at least 1, got 0",
        ),
        (
            lambda: NIF(1, 1).forward_grid(torch.zeros(3, 1), torch.zeros(3, 1), chunk_size=0),
            "chunk_size must be at least 1, got 0",
        ),
        (
            lambda: NIF(1, 1).forward_grid(torch.zeros(3, 2), torch.zeros(3, 1)),
            r"p must have shape \(N, 1\) for parameter_dim=1, got shape \(3, 2\)",
        ),
        (
            lambda: NIF(1, 2).forward_grid(torch.zeros(3, 1), torch.zeros(5, 1)),
            r"x must have shape \(N, 2\) or \(T, N, 2\), got shape \(5, 1\)",
        ),
        (
            lambda: NIF(1, 2).forward_grid(torch.zeros(3, 1), torch.zeros(2, 5, 2)),
            "a mesh for each of 3 parameters, got 2; pass meshes of different lengths as a list",
        ),
        (
            lambda: NIF(1, 2).forward_grid(torch.zeros(3, 1), [torch.zeros(2, 2)]),
            "expected a mesh for each of 3 parameters, got 1",
        ),
        (
            lambda: NIF(1, 2).forward_grid(torch.zeros(1, 1), [torch.zeros(2, 3)]),
            r"every mesh must have shape \(N, 2\) for coordinate_dim=2, got shape \(2, 3\)",
        ),
        (
            lambda: NIF(2, 1).at(torch.zeros(3)),
            r"p must be one vector of 2 parameters, got shape \(3,\)",
        ),
        (
            lambda: gradient(NIF(1, 1), torch.zeros(3, 1), torch.zeros(4, 1)),
            r"pairs \(N, P\) and \(N, d\) of equal number, got shapes \(3, 1\) and \(4, 1\)",
        ),
        (
            lambda: time_derivative(NIF(1, 1), torch.zeros(3, 1), torch.zeros(3, 1), 1),
            r"axis must name a column of p, of shape \(3, 1\), got 1",
        ),
        (lambda: Normalizer(NIF(1, 1), "max"), "method must be one of .*, got 'max'"),
        (
            lambda: Normalizer(NIF(1, 1)).fit(nan(3, 1), torch.zeros(4, 1), torch.zeros(3, 4, 1)),
            r"p must be finite, got 1 of 3 numbers that are not, the first nan at \(2, 0\)",
        ),
        (
            lambda: Normalizer(NIF(1, 1)).fit(torch.zeros(3, 1), torch.zeros(4, 1), nan(3, 4, 1)),
            r"u must be finite, got 4 of 12 .* the first nan at \(2, 0, 0\)",
        ),
        (
            lambda: Normalizer(NIF(1, 1)).fit(*(torch.zeros(3, n) for n in (1, 2, 1))),
            r"the last axis of x must have length 1, got shape \(3, 2\)",
        ),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
