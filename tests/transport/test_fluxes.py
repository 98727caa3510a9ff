"""Updates by fluxes: mass of every region, bounds, walls, land, and refused input."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurenix_ms.conservation import total_mass
from neurenix_ms.transport import FluxConservation

DIMS = pytest.mark.parametrize("dims", [1, 2, 3])


def draw(dims: int, n: int, seed: int, dtype=torch.float64):
    """A density, fluxes, a mask and areas on unequal axes."""
    generator = torch.Generator().manual_seed(seed)
    size = (n, n + 2, n + 1)[:dims]
    density = torch.rand(2, 1, *size, generator=generator, dtype=dtype)
    density = torch.where(density < 0.3, 0, density)
    fluxes = 2 * torch.randn(2, dims, *size, generator=generator, dtype=dtype)
    mask = torch.rand(size, generator=generator) > 0.2
    area = 0.5 + torch.rand(size, generator=generator, dtype=dtype)
    return density, fluxes, mask, area


def by_loops(density, fluxes, mask, area, boundary):
    """The update without a limit, face by face."""
    mass = (density * area).clone()
    size = density.shape[2:]
    for cell in product(*map(range, size)):
        for axis, n in enumerate(size):
            if boundary == "wall" and cell[axis] == n - 1:
                continue
            other = (*cell[:axis], (cell[axis] + 1) % n, *cell[axis + 1 :])
            if not (mask[cell] and mask[other]):
                continue
            flux = fluxes[(slice(None), axis, *cell)]
            mass[(slice(None), 0, *cell)] -= flux
            mass[(slice(None), 0, *other)] += flux
    return mass / area


@DIMS
@pytest.mark.parametrize("boundary", ["periodic", "wall"])
def test_without_the_limit_it_adds_the_flux_of_every_face(dims, boundary):
    density, fluxes, mask, area = draw(dims, 3, seed=dims)
    update = FluxConservation(dims, boundary=boundary, nonnegative=False)
    expected = by_loops(density, fluxes, mask, area, boundary)
    torch.testing.assert_close(update(density, fluxes, mask, area), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 99),
    st.sampled_from(["periodic", "wall"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_mass_is_conserved_and_nothing_is_negative(dims, n, seed, boundary, dtype):
    density, fluxes, mask, area = draw(dims, n, seed, dtype)
    after = FluxConservation(dims, boundary=boundary)(density, fluxes, mask, area)
    assert (after >= 0).all()
    assert torch.equal(after[..., ~mask], (density * area / area)[..., ~mask])  # land keeps its own
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    before, later = (total_mass(x, cell_area=area) for x in (density, after))
    torch.testing.assert_close(later, before, rtol=tolerance, atol=tolerance)


def test_fluxes_that_a_cell_can_pay_are_not_changed():
    density, fluxes, mask, area = draw(2, 6, seed=0)
    fluxes = fluxes.clamp(-1, 1) * 0.02
    density = density + 0.5
    limited, free = (FluxConservation(2, nonnegative=on) for on in (True, False))
    expected = free(density, fluxes, mask, area)
    torch.testing.assert_close(limited(density, fluxes, mask, area), expected)


def test_a_region_changes_only_by_what_crosses_its_border():
    density, fluxes, _, _ = draw(1, 9, seed=3)
    changed = fluxes.clone()
    changed[..., 3] = 0.0  # any flux inside of the region 2 to 5
    update = FluxConservation(1, nonnegative=False)
    first, second = (update(density, f)[..., 2:6].sum() for f in (fluxes, changed))
    torch.testing.assert_close(first, second)


@DIMS
def test_gradients_are_right(dims):
    density, fluxes, mask, area = draw(dims, 2, seed=5)
    density = (density + 0.1).requires_grad_()
    update = FluxConservation(dims, boundary="wall")
    fluxes.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, f: update(q, f, mask, area), (density, fluxes))


def test_bad_input_is_refused():
    update, x = FluxConservation(2), torch.zeros(1, 1, 4, 5)
    with pytest.raises(
        ValueError, match=r"fluxes must have shape \(1, 2, 4, 5\), got \(1, 1, 4, 5\)"
    ):
        update(x, x)
    with pytest.raises(ValueError, match="density must have 1 channel"):
        update(x.expand(-1, 2, -1, -1), x)
    with pytest.raises(
        ValueError, match=r"mask must be broadcastable to \(1, 1, 4, 5\), got \(3,\)"
    ):
        update(x, torch.zeros(1, 2, 4, 5), torch.ones(3))
    with pytest.raises(ValueError, match=r"cell_area must be broadcastable .*, got \(4, 4\)"):
        update(x, torch.zeros(1, 2, 4, 5), None, torch.ones(4, 4))
    with pytest.raises(ValueError, match="boundary must be one of"):
        FluxConservation(2, boundary="open")
    with pytest.raises(ValueError, match="boundary must be one name or 2"):
        FluxConservation(2, boundary=["wall"])
