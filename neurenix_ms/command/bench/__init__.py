"""Report and compare time, memory and FLOPs, of runs and of networks.

Runs are files of `pytest --benchmark-json`, made by pytest-benchmark with the fixture `measure`.

Examples:

  neurenix-ms bench models UNet --shapes 1x3x64x64
  neurenix-ms bench report run.json --out run.html
  neurenix-ms bench compare before.json after.json
"""
