"""Every command on the page of the command line runs."""

import re
import shlex
from pathlib import Path

import pytest
from pages import ROOT

from neurenix_ms.command import main

PAGE = (ROOT / "docs" / "command.md").read_text("utf-8")


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (made,) = re.findall(r"^```python.*?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(made, {})
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 1
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "neurenix-ms"
        assert main(words) == 0, capsys.readouterr().err


def test_every_subcommand_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    ([\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert "predict" in listed
    assert re.findall(r"^## ([\w-]+)$", PAGE, re.MULTILINE) == sorted(listed, key=ORDER.index)


ORDER = ["predict", "info", "list", "export", "demo", "fit", "bench"]
