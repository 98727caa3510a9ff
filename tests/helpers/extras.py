"""Packages that only extras install."""

EXTRAS = {
    "lightning",
    "torchmetrics",
    "porespy",
    "taufactor",
    "scipy",
    "matplotlib",
    "timm",
    "tqdm",
    "torchdiffeq",
}
