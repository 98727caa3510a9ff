"""An installation without extras."""

import subprocess
import sys

from extras import EXTRAS

# a finder in front of all others: modules of the extras are not found, as on a fresh machine
SCRIPT = """
import importlib, pkgutil, sys

HIDDEN = {hidden}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in HIDDEN else found(name, *a)

import neurenix_ms
for module in pkgutil.walk_packages(neurenix_ms.__path__, "neurenix_ms.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        if "pip install 'neurenix_ms[" not in str(error):
            print(module.name, error)
"""
HIDDEN = EXTRAS | {"onnx", "onnxscript", "einops"}


def test_without_extras_every_module_is_imported_or_names_the_extra():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(hidden=HIDDEN)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
