"""Laws that give the permeability of a medium by a few numbers, fitted to boxes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurenix_ms.recipes.permeability.data import Sample
from neurenix_ms.recipes.permeability.training import hydraulic, hydraulic_radii

KOZENY_CARMAN = "Kozeny-Carman"
EACH_MEDIUM = "Kozeny-Carman, a constant for each medium"
GRAIN_SIZE = "Kozeny-Carman, by grain size"
POWERS = "powers of porosity and surface"
CONDUCTION = "hydraulic radius and solved conduction"


def true_permeability(samples: Sequence[Sample]) -> Tensor:
    """Return the solved permeability of every box along every axis `(N, 3)`."""
    return torch.stack([one["permeability"] for one in samples]).double()


def kozeny_carman_constant(seen: Sequence[Sample]) -> float:
    """Return the constant of Kozeny and Carman's law with the smallest squared error of the logarithm.

    Examples:
        >>> box = {"pores": torch.zeros(4, 4, 4), "permeability": torch.full((3,), 0.5)}
        >>> box["pores"][:, :, :2] = 1  # channels of two voxels: a hydraulic radius of 1
        >>> kozeny_carman_constant([box])
        1.0
    """
    ratios = true_permeability(seen) / hydraulic(seen).double()[:, None]
    return float(ratios.log().mean().exp())


def law_predictions(
    seen: Sequence[Sample], unseen: Sequence[Sample], radii: Sequence[int]
) -> dict[str, Tensor]:
    """Return the permeability `(N, 3)` of unseen boxes by all laws, each fitted to the same boxes.

    Args:
        seen: Boxes that the network is trained on.
        unseen: Boxes to predict, which alternate between the same kinds of media.
        radii: Grain radius of every kind.
    """
    kinds = len(radii)

    def porosity(samples: Sequence[Sample]) -> Tensor:
        return torch.stack([one["pores"].mean() for one in samples]).double()[:, None]

    def by_surface(samples: Sequence[Sample]) -> Tensor:
        return hydraulic(samples).double()[:, None].expand(-1, 3)

    def by_grains(samples: Sequence[Sample]) -> Tensor:
        sizes = torch.tensor([radii[i % kinds] for i in range(len(samples))]).double()[:, None]
        phi = porosity(samples)
        return (sizes.square() * phi**3 / (1 - phi).square()).expand(-1, 3)

    def by_conduction(samples: Sequence[Sample]) -> Tensor:
        conductivity = torch.stack([one["conductivity"] for one in samples]).double()
        return hydraulic_radii(samples).double().square()[:, None] * conductivity

    known = true_permeability(seen)
    laws = {KOZENY_CARMAN: by_surface, GRAIN_SIZE: by_grains, CONDUCTION: by_conduction}
    found = {
        name: law(unseen) * (known / law(seen)).log().mean().exp() for name, law in laws.items()
    }
    ratios = (known / by_surface(seen)).log()
    constants = torch.stack([ratios[k::kinds].mean().exp() for k in range(kinds)])
    each = constants[torch.arange(len(unseen)) % kinds][:, None]
    found[EACH_MEDIUM] = by_surface(unseen) * each

    def logarithms(samples: Sequence[Sample]) -> Tensor:
        phi, radius = porosity(samples), hydraulic_radii(samples).double()[:, None]
        return torch.cat([torch.ones_like(phi), phi.log(), radius.log()], dim=1)

    mean = known.log().mean(1, keepdim=True)
    powers = torch.linalg.lstsq(logarithms(seen), mean).solution
    found[POWERS] = (logarithms(unseen) @ powers).exp().expand(-1, 3)
    order = (KOZENY_CARMAN, EACH_MEDIUM, GRAIN_SIZE, POWERS, CONDUCTION)
    return {name: found[name] for name in order}
