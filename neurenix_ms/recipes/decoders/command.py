"""Compare decoders over one backbone on noisy images with objects of several sizes.

`python -m neurenix_ms.recipes.decoders` trains seven networks with nearly the same number of
parameters, from several seeds, to segment discs among rings whose radii span a factor of eight. It
writes a table of accuracy, time and memory. An interrupted run resumes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.meter import peak_tensor_bytes
from neurenix_ms.recipes.decoders.models import CHOSEN, MODELS, num_parameters
from neurenix_ms.recipes.decoders.report import table
from neurenix_ms.recipes.options import check_at_least

SIZE = 64  # pixels per axis
NUM_TEST = 128
BATCH = 8
RADII = (2.5, 20.0)  # of the objects, spread evenly over their logarithms
SMALL, LARGE = 5.0, 10.0  # radii below and above which discs are scored alone
NUM_TIMED = 15


def scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return a noisy image, the mask of its discs, and the radius of the disc in every pixel.

    Discs and rings differ inside only; both have the brightness of the others of their image.
    """
    y, x = torch.meshgrid(*[torch.arange(SIZE)] * 2, indexing="ij")
    image, radii = torch.zeros(2, SIZE, SIZE)
    for number in range(8):
        cx, cy, u = torch.rand(3, generator=generator).tolist()
        radius = RADII[0] * (RADII[1] / RADII[0]) ** u
        distance = ((x - SIZE * cx) ** 2 + (y - SIZE * cy) ** 2).sqrt()
        inside = distance < radius
        radii[inside] = radius if number % 2 else 0.0
        image[inside] = 1.0 if number % 2 else 0.0
        image[inside & (distance > 0.7 * radius)] = 1.0
    noise = 0.5 * torch.randn(SIZE, SIZE, generator=generator)
    return (image + noise)[None], (radii > 0).float()[None], radii[None]


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, masks and radii of so many scenes."""
    generator = torch.Generator().manual_seed(seed)
    parts = zip(*(scene(generator) for _ in range(count)), strict=True)
    images, masks, radii = (torch.stack(part) for part in parts)
    return images, masks, radii


def main(argv: Sequence[str] | None = None) -> str:
    """Run the comparison and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    note = options.out / "decoders.json"
    setting = {"iterations": options.iterations, "samples": options.samples}
    results: list[dict[str, Any]] = []
    if note.exists() and not options.fresh:
        kept = json.loads(note.read_text())
        results = kept["results"] if kept["setting"] == setting else []
    widths = {name: CHOSEN[name] for name in options.models}
    for seed in options.seeds:
        for name, width in widths.items():
            if any((r["model"], r["seed"]) == (name, seed) for r in results):
                continue
            torch.manual_seed(seed)
            model = MODELS[name](width)
            seconds = trained(model, options, seed)
            results.append({"model": name, "seed": seed, "width": width, "training": seconds})
            results[-1] |= scores(model, seed) | costs(model)
            print(f"{name}, seed {seed}: IoU {results[-1]['iou']:.3f}, {seconds:.0f} s")
            content = {"setting": setting, "threads": torch.get_num_threads(), "results": results}
            write_atomically(note, json.dumps(content, indent=1).encode())
    text = table([r for r in results if r["model"] in widths])
    write_atomically(options.out / "decoders.md", f"{text}\n".encode())
    print(f"\n{text}\n\n{options.out / 'decoders.md'}")
    return text


def trained(model: nn.Module, options: argparse.Namespace, seed: int) -> float:
    """Train a network on the scenes of a seed; return the wall time in seconds."""
    images, masks, _ = scenes(options.samples, 1000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=options.iterations)
    start = time.perf_counter()
    model.train()
    for _ in range(options.iterations):
        chosen = torch.randint(len(images), (BATCH,))
        loss = loss_of(model, images[chosen], masks[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def loss_of(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Return the cross entropy of a batch."""
    return nn.functional.binary_cross_entropy_with_logits(model(images), masks)


@torch.no_grad()
def scores(model: nn.Module, seed: int) -> dict[str, float]:
    """Return the IoU on unseen scenes, and the ratio of pixels of small and of large discs found."""
    images, masks, radii = scenes(NUM_TEST, 2000 + seed)
    found = torch.cat([model.eval()(batch) for batch in images.split(BATCH)]) > 0
    wanted = masks > 0.5
    small, large = wanted & (radii < SMALL), radii > LARGE
    return {
        "iou": ((found & wanted).sum() / (found | wanted).sum()).item(),
        "small": (found & small).sum().item() / small.sum().item(),
        "large": (found & large).sum().item() / large.sum().item(),
    }


def costs(model: nn.Module) -> dict[str, float]:
    """Return parameters, CPU time of a batch in evaluation, and peak memory of a training step."""
    images, masks, _ = scenes(BATCH, 0)
    times = []
    with torch.no_grad():
        for _ in range(NUM_TIMED):
            start = time.process_time()
            model.eval()(images)
            times.append(time.process_time() - start)
    model.train()
    peak = peak_tensor_bytes(lambda: loss_of(model, images, masks).backward())
    return {"parameters": num_parameters(model), "time": median(times), "peak": peak}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.decoders",
        description="Compare decoders over one backbone on objects of several sizes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--iterations", type=int, default=100, help="steps of AdamW")
    parser.add_argument("--samples", type=int, default=512, help="training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each")
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"), help="results")
    parser.add_argument("--fresh", action="store_true", help="ignore stored results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, iterations=2, samples=1, seeds=0)
    return options
