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
    "zarr",
    "h5py",
    "h5netcdf",
    "xarray",
    "tifffile",
    "nibabel",
    "torchdiffeq",
    "huggingface_hub",
    "safetensors",
}
