"""One command per experiment, such as `python -m neurenix_ms.recipes.demo`."""

from importlib.util import find_spec

NEEDED = ("lightning", "torchmetrics", "matplotlib", "scipy", "porespy", "tqdm")

_missing = [name for name in NEEDED if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"the recipes need {', '.join(_missing)}: pip install 'neurenix_ms[demo]'", name=_missing[0]
    )
