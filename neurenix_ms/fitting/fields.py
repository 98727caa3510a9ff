"""Implicit fields on point clouds: rows of a file as data, and the task that trains on them."""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from neurenix_ms._core.checks import check_integer
from neurenix_ms._core.seeds import order_of
from neurenix_ms.fitting.loading import FitData
from neurenix_ms.fitting.tasks import Arguments, FitTask, as_in_the_data, optimizer_named
from neurenix_ms.implicit import Normalizer, PointCloud
from neurenix_ms.implicit.nif import GeneratedField
from neurenix_ms.registry import create
from neurenix_ms.training import RegressionTask


class RowBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of rows of a point cloud, in another order in every epoch.

    Args:
        cloud: The rows.
        batch_size: Rows of a batch.
        seed: Seed of the order; None keeps the order of the file.
    """

    def __init__(self, cloud: PointCloud, batch_size: int, seed: int | None) -> None:
        self.cloud = cloud
        self.batch_size = batch_size
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch."""
        if self.seed is None:
            self.order = torch.arange(len(self.cloud))
            return
        self.order = order_of(len(self.cloud), self.seed, epoch)

    def __len__(self) -> int:
        return -(-len(self.cloud) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        first = index * self.batch_size
        p, x, u = self.cloud[self.order[first : first + self.batch_size]]
        return torch.cat([p, x], dim=1), u


class Points(FitData):
    """Values at scattered points in a table or in meshes, for `Field`.

    Use it for simulations on any mesh and for measurements. All rows are kept in memory.

    Args:
        path: `.csv`, `.parquet`, `.vtk`, `.vtu` or `.xdmf`, or a list of such files.
        coordinates: Names of the columns of coordinates.
        values: Names of the columns of values.
        parameters: Names of the columns of parameters, such as the time.
        parameter_values: Parameters of every file, in place of columns.
        drop_missing: Drop rows with missing numbers.
        batch_size: Rows of a batch.
        validation: Fraction of the rows that is held out.
        seed: Seed of the choice and of the order.

    Raises:
        ValueError: If a file is not usable; see `PointCloud.read`.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open(f"{folder}/run.csv", "w") as file:
        ...         size = file.write("x,u\\n" + "0.5,2.0\\n" * 10)
        ...     data = Points(f"{folder}/run.csv", ["x"], ["u"], validation=0.2)
        ...     rows, values = data.sets[0][0]
        >>> rows.shape, values.shape  # a parameter that is 0, and x
        (torch.Size([8, 2]), torch.Size([8, 1]))
    """

    def __init__(
        self,
        path: str | list[str],
        coordinates: list[str],
        values: list[str],
        parameters: list[str] | None = None,
        *,
        parameter_values: list[list[float]] | None = None,
        drop_missing: bool = False,
        batch_size: int = 1024,
        validation: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(None, 0, validation, seed)
        self.path = path
        self.coordinates, self.values = coordinates, values
        self.parameters = list(parameters or [])
        self.parameter_values = parameter_values
        self.drop_missing = drop_missing
        self.rows = check_integer("batch_size", batch_size, 1)

    def build(self) -> tuple[Dataset[Any], Dataset[Any] | None]:
        """Return batches of the rows to train on, and of those held out."""
        self.cloud = PointCloud.read(
            self.path,
            coordinates=self.coordinates,
            values=self.values,
            parameters=self.parameters,
            parameter_values=self.parameter_values,
            drop_missing=self.drop_missing,
        )
        if self.validation == 0:
            return RowBatches(self.cloud, self.rows, self.seed), None
        seen, held_out = self.cloud.split(self.validation, seed=self.seed)
        return RowBatches(seen, self.rows, self.seed), RowBatches(held_out, self.rows, None)


class OnRows(nn.Module):
    """Field of rows of parameters and coordinates.

    Args:
        field: The field.
        parameter_dim: Number of parameters, the first columns.

    Shape:
        `(N, P + d)` -> `(N, out)`
    """

    def __init__(self, field: Normalizer, parameter_dim: int) -> None:
        super().__init__()
        self.field = field
        self.parameter_dim = parameter_dim

    def forward(self, rows: Tensor) -> Tensor:
        return self.field(rows[:, : self.parameter_dim], rows[:, self.parameter_dim :])


class InScaledUnits(nn.Module):
    """Mean squared error of physical values in the units of a field's network.

    Args:
        field: The field.

    Shape:
        twice `(N, out)` -> a scalar
    """

    def __init__(self, field: Normalizer) -> None:
        super().__init__()
        self.field = field

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.field.scaled("u", output), self.field.scaled("u", target))


class Field(FitTask, RegressionTask):
    """Train an implicit field on scattered points, in scaled units.

    The scales are computed from the training data, and saved with the field, which takes and returns
    physical units. The losses are in scaled units.

    Args:
        network: "nif", "multiscale_nif" or "last_layer_nif".
        arguments: Arguments of its class. The numbers of parameters, coordinates and values are those of
            the data.
        method: How the network's units are chosen; see `Normalizer`.
        optimizer: Name of an optimizer of torch.
        optimizer_arguments: Its arguments, except for the learning rate.
        learning_rate: Peak learning rate.
        schedule: "one_cycle", or null for a constant learning rate.

    Shape:
        rows `(N, P + d)` and values `(N, out)`

    Raises:
        ValueError: If there is no such field or argument.

    Examples:
        >>> task = Field("nif", {"shape_width": 16})
        >>> task.arguments, task.method
        ({'shape_width': 16}, 'minmax')
    """

    def __init__(
        self,
        network: str = "multiscale_nif",
        arguments: Arguments | None = None,
        *,
        method: Literal["minmax", "standard"] = "minmax",
        optimizer: str = "Adam",
        optimizer_arguments: Arguments | None = None,
        learning_rate: float = 5e-3,
        schedule: Literal["one_cycle"] | None = "one_cycle",
    ) -> None:
        if network not in ("nif", "multiscale_nif", "last_layer_nif"):
            raise ValueError(
                "network must be one of ['nif', 'multiscale_nif', 'last_layer_nif'], got "
                f"{network!r}"
            )
        super().__init__(
            nn.Identity(),  # until the data say how many columns there are
            optimizer=optimizer_named(optimizer, optimizer_arguments),
            learning_rate=learning_rate,
            schedule=schedule,
        )
        self.name, self.arguments, self.method = network, dict(arguments or {}), method

    def prepare(self, data: Any) -> None:
        """Build the field, with the scales of the data."""
        cloud = data.sets[0].cloud
        counts = {
            "parameter_dim": cloud.p.shape[1],
            "coordinate_dim": cloud.x.shape[1],
            "out_channels": cloud.u.shape[1],
        }
        inner = cast(GeneratedField, create(self.name, **as_in_the_data(self.arguments, counts)))
        field = Normalizer(inner, self.method)
        field.fit(cloud.p, cloud.x, cloud.u)
        self.model = OnRows(field, counts["parameter_dim"])
        self.loss = InScaledUnits(field)

    def network(self) -> nn.Module:
        """Return the field in physical units."""
        return cast(OnRows, self.model).field

    @torch.no_grad()
    def report(self, data: Any) -> list[str]:
        """Return the relative error on the rows that were held out."""
        if data.sets[1] is None:
            return []
        cloud = data.sets[1].cloud
        field = self.network().to(cloud.x.device)
        error = field(cloud.p, cloud.x, chunk_size=100_000) - cloud.u
        around = cloud.u - cloud.u.mean(0)
        relative = error.norm(dim=0) / around.norm(dim=0).clamp(min=1e-30)
        names = zip(data.values, relative.tolist(), strict=True)
        return [
            f"error of {len(cloud)} rows held out, relative to the deviation of the values: "
            + ", ".join(f"{name} {value:.3g}" for name, value in names)
        ]
