"""Measure exact tiles in comparison with the whole input and with blended windows.

`python -m neurenix_ms.recipes.tiles` writes a table and a figure under `runs/tiles` in a minute or
two; `--large` adds volumes that do not fit into memory, in a quarter of an hour. Finished measurements
are stored and not repeated.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurenix_ms import UNet
from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.execution import TiledModel, accumulate_gradients
from neurenix_ms.meter import count_flops, peak_resident_bytes, peak_tensor_bytes
from neurenix_ms.msnet import MSNet
from neurenix_ms.recipes.tiles.ranks import measure_ranks

SIZE, TILE = 512, 128
DEEP = ("level.inner.inner",)
MIB = 2**20


def main(arguments: list[str] | None = None) -> None:
    """Run the measurements that are missing, then write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiles"))
    parser.add_argument("--steps", type=int, default=60, help="training steps of the network drawn")
    parser.add_argument("--large", action="store_true", help="add volumes, which take 15 minutes")
    parser.add_argument(
        "--ranks", action="store_true", help="measure the processes of torchrun only"
    )
    parser.add_argument("--size", type=int, default=1024, help="size of the image, with --ranks")
    options = parser.parse_args(arguments)
    if options.ranks:
        measure_ranks(options.out, options.size)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "tiles.json"
    found: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    steps: dict[str, Callable[[], Any]] = {
        "image": lambda: compare_ways(options.steps, options.out / "tiles.png")
    }
    if options.large:
        for size in (128, 192):
            steps[f"volume {size}"] = partial(measure_volume, size)
        steps["five levels"] = measure_five_levels
        steps["predict 512"] = lambda: measure_prediction(512, 128)
        steps["train 256"] = lambda: measure_training(256, 64)
    for name, step in steps.items():
        if name not in found:
            print(f"{name} ..", flush=True)
            found[name] = step()
            write_atomically(store, (json.dumps(found, indent=1) + "\n").encode())
    table = as_table(found)
    write_atomically(options.out / "tiles.md", table.encode())
    print(table)


def compare_ways(steps: int, picture: Path) -> dict[str, dict[str, float]]:
    """Measure error, operations, CPU time and peak of four ways to run a U-Net on 512 x 512 pixels."""
    from monai.inferers import sliding_window_inference  # type: ignore[attr-defined, unused-ignore]

    torch.manual_seed(0)
    model = trained(steps)
    clean = fields(1, SIZE)
    x = blurred(clean)

    def blended() -> Tensor:
        windows = sliding_window_inference(x, (TILE, TILE), 4, model, 0.5, mode="gaussian")
        assert isinstance(windows, Tensor)
        return windows

    plain, deep = (TiledModel(model, TILE, whole=parts, schedule="passes") for parts in ((), DEEP))
    ways: dict[str, Callable[[], Tensor]] = {
        "whole image": lambda: model(x),
        "windows blended (MONAI, overlap 0.5)": blended,
        "tiles": lambda: plain(x),
        "tiles, deep levels on the whole image": lambda: deep(x),
    }
    with torch.no_grad():
        whole = model(x)
        results = {name: way() for name, way in ways.items()}
        numbers = {
            name: {
                "error": ((results[name] - whole).abs().max() / whole.std()).item(),
                "gflop": count_flops(way) / 1e9,
                "seconds": cpu_seconds(way),
                "mib": peak_tensor_bytes(way) / MIB,
            }
            for name, way in ways.items()
        }
    draw(picture, x, whole, list(results.values())[1::2])
    return numbers


def trained(steps: int) -> nn.Module:
    """Train a U-Net to sharpen smooth random fields."""
    model = UNet(1, 1, features=[16, 32, 64], remember=False)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        clean = fields(4, TILE)
        optimizer.zero_grad()
        F.mse_loss(model(blurred(clean)), clean).backward()
        optimizer.step()
    return model.eval()


def fields(count: int, size: int) -> Tensor:
    """Return random fields with structure from 2 to 64 pixels."""
    scales = [torch.randn(count, 1, size // r, size // r) for r in (2, 8, 32)]
    return sum((F.interpolate(s, size, mode="bicubic") for s in scales), torch.zeros(()))


def blurred(clean: Tensor) -> Tensor:
    """Blur fields and add noise."""
    return F.avg_pool2d(clean, 9, 1, 4) + 0.1 * torch.randn_like(clean)


def measure_volume(size: int) -> dict[str, float]:
    """Measure operations and peak of a four-level U-Net on a volume, in tiles and as a whole."""
    model = UNet(1, 1, [16, 32, 64, 128], spatial_dims=3, norm=None, remember=False).eval()
    tiled = TiledModel(model, 64, spatial_dims=3, whole=DEEP, schedule="passes")
    x, out = torch.randn(1, 1, *(size,) * 3), torch.empty(1, 1, *(size,) * 3)
    tiled(x[..., :80, :80, :80])  # makes the plan, which is not counted
    with torch.no_grad():
        small = torch.randn(1, 1, 64, 64, 64)
        per_voxel = count_flops(lambda: model(small)) / 64**3
        whole = peak_tensor_bytes(lambda: model(torch.empty(1, 1, *(96,) * 3))) * (size / 96) ** 3
    tiled(x, out)
    return {
        "flops": count_flops(lambda: tiled(x, out)) / (per_voxel * size**3),
        "mib": peak_tensor_bytes(lambda: tiled(x, out)) / MIB,
        "whole_mib": whole / MIB,
    }


def measure_five_levels(size: int = 128) -> dict[str, float]:
    """Measure the same for a network of five levels, of which all but the first run whole."""
    features = [8, 16, 32, 64, 128]
    model = UNet(1, 1, features, spatial_dims=3, norm=None, remember=False).eval()
    parts = ("level.inner",)
    tiled = TiledModel(model, 64, spatial_dims=3, whole=parts, schedule="passes")
    x = torch.randn(1, 1, *(size,) * 3)
    tiled(x)
    with torch.no_grad():
        return {
            "flops": count_flops(lambda: tiled(x)) / count_flops(lambda: model(x)),
            "mib": peak_tensor_bytes(lambda: tiled(x)) / MIB,
            "whole_mib": peak_tensor_bytes(lambda: model(x)) / MIB,
        }


def measure_prediction(size: int, tile: int) -> dict[str, float]:
    """Measure resident memory, including the volume, and wall time of an MS-Net on a volume."""
    model = MSNet(num_scales=4, num_filters=2).eval()

    def run() -> None:
        model.predict(torch.rand(1, 1, *(size,) * 3), tile_size=tile)

    start = time.perf_counter()
    resident = peak_resident_bytes(run)
    return {"gib": (resident or 0) / 2**30, "seconds": time.perf_counter() - start}


def measure_training(size: int, tile: int) -> dict[str, float]:
    """Measure the same for the gradients of a training step, with all three coarse stages run whole."""
    model = MSNet(num_scales=4, num_filters=2)
    whole = tuple(f"stages.{k}" for k in range(3))

    def loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        pairs = zip(outputs, targets, strict=True)
        return sum((F.mse_loss(y, t) for y, t in pairs), torch.zeros(()))

    def run() -> None:
        x = torch.rand(1, 1, *(size,) * 3)
        targets = [torch.rand(1, 1, *(size >> k,) * 3) for k in (3, 2, 1, 0)]
        accumulate_gradients(model, x, targets, loss, tile, whole=whole)

    start = time.perf_counter()
    resident = peak_resident_bytes(run)
    return {"gib": (resident or 0) / 2**30, "seconds": time.perf_counter() - start}


def cpu_seconds(call: Callable[[], object], rounds: int = 5) -> float:
    """Return the median CPU time of a call in this process."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def as_table(found: dict[str, Any]) -> str:
    """Return the measurements as Markdown tables."""
    lines = [
        "| three-level U-Net, 512 x 512, tile 128 | error / std | GFLOP | CPU time | peak memory |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found["image"].items():
        cells = f"{row['gflop']:.1f} | {row['seconds']:.2f} s | {row['mib']:.0f} MiB"
        lines.append(f"| {name} | {row['error']:.1e} | {cells} |")
    volumes = {
        "four levels, 128³ voxels, two levels in tiles": found.get("volume 128"),
        "four levels, 192³ voxels, two levels in tiles": found.get("volume 192"),
        "five levels, 128³ voxels, one level in tiles": found.get("five levels"),
    }
    if any(volumes.values()):
        lines += [
            "",
            "| 3-D U-Net, tile 64, deep levels on the whole volume "
            "| FLOPs, relative | peak memory | peak memory, untiled |",
            "| :--- | ---: | ---: | ---: |",
        ]
        for name, row in volumes.items():
            if row is not None:
                cells = f"{row['flops']:.2f} x | {row['mib']:.0f} MiB | {row['whole_mib']:.0f} MiB"
                lines.append(f"| {name} | {cells} |")
    large = {
        "MS-Net, prediction for 512³ voxels": found.get("predict 512"),
        "MS-Net, gradients for 256³ voxels": found.get("train 256"),
    }
    if any(large.values()):
        lines += ["", "| | resident, with the volume | time |", "| :--- | ---: | ---: |"]
        for name, row in large.items():
            if row is not None:
                lines.append(f"| {name} | {row['gib']:.2f} GiB | {row['seconds']:.0f} s |")
    return "\n".join(lines) + "\n"


def draw(path: Path, x: Tensor, whole: Tensor, others: list[Tensor]) -> None:
    """Draw input, result, and the errors of blended windows and tiles."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import colormaps, pyplot
    from matplotlib.colors import LogNorm

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 9), layout="constrained")
    axes = grid.flatten()
    for axis, image, title in zip(
        axes, (x, whole), ("input, 512 x 512", "U-Net on the whole image"), strict=False
    ):
        axis.imshow(image[0, 0], cmap="gray")
        axis.set_title(title, fontsize=13)
    colors = colormaps["magma"].with_extremes(bad="black")
    for axis, result, title in zip(
        axes[2:], others, ("blended windows", "exact tiles"), strict=True
    ):
        error = (result - whole)[0, 0].abs() / whole.std()
        axis.imshow(error, cmap=colors, norm=LogNorm(1e-6, 1))
        axis.set_title(f"{title}: error up to {error.max():.0e} std", fontsize=13)
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(
        axes[-1].images[0], ax=grid[1], label="error in standard deviations (log)", shrink=0.8
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, format="png")
    pyplot.close(figure)
    write_atomically(path, drawn.getvalue())
