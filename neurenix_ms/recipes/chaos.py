"""Chaotic waves that several recipes forecast."""

from pathlib import Path

from torch import Tensor

from neurenix_ms.datasets import kuramoto_sivashinsky

DT_WAVES = 0.25
END, SETTLED = 2600.0, 400  # time of the solution, and steps before it is chaotic


def chaotic_waves(seed: int, folder: Path) -> Tensor:
    """Return Kuramoto-Sivashinsky waves on a ring of circumference 22, once they are chaotic.

    Args:
        seed: Seed of the start.
        folder: Folder of the cache.

    Shape:
        `(T, 32)`, in steps of 0.25
    """
    ring = kuramoto_sivashinsky(
        1.0,
        num_points=64,
        num_times=int(END / DT_WAVES) + 1,
        end_time=END,
        length=22.0,
        time_step=DT_WAVES / 2,
        seed=seed,
        root=folder,
    )
    return ring["u"][SETTLED:, ::2].float()
