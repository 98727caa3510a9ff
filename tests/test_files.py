"""A file gives back the model, or says why not; nothing is executed, nothing is half-done."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from neurenix_ms import MultiScaleModel, PyramidNetwork, UNet, load, save

MODELS = {
    "unet": lambda: UNet(3, 1, [4, 8], dropout=0.1, norm="group"),
    "pyramid": lambda: PyramidNetwork(3, 2, 3, 4, return_pyramid=True),
    "nested": lambda: MultiScaleModel([1, 0.5], PyramidNetwork(3, 2, 2, 4), "attention"),
    "no base model": lambda: MultiScaleModel([1, 0.5], fusion_method="mean"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_library_model_comes_back_by_itself(name, tmp_path):
    model = MODELS[name]().eval()
    x = torch.randn(1, 3, 16, 20)
    expected = model(x)  # builds what is built lazily
    save(model, tmp_path / "model.any")
    loaded = load(tmp_path / "model.any").eval()
    for a, b in zip(expected, loaded(x), strict=True):
        assert torch.equal(a, b)


def test_scales_added_later_come_back(tmp_path):
    model = MultiScaleModel([1.0], UNet(1, 1, [4]))
    model.add_scale(0.5)
    save(model, tmp_path / "m.nx")
    assert load(tmp_path / "m.nx").scales == [1.0, 0.5]


def test_the_file_is_plain(tmp_path):
    save(UNet(1, 1, [4]), tmp_path / "m.nx")
    content = torch.load(tmp_path / "m.nx", weights_only=True)
    assert content["class"] == "UNet"
    assert content["config"]["features"] == [4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 3),
        lambda: MultiScaleModel([1.0], nn.Conv2d(1, 1, 1)),
        lambda: UNet(1, 1, [4], act=nn.ReLU),
    ],
)
def test_other_models_are_filled_when_given(make, tmp_path):
    model, other = make(), make()
    save(model, tmp_path / "m.nx")
    with pytest.raises(ValueError, match=r"cannot be rebuilt from the file alone; .*model="):
        load(tmp_path / "m.nx")
    assert load(tmp_path / "m.nx", model=other) is other
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_lazy_head_is_built_from_the_file(tmp_path):
    model = MultiScaleModel([1, 0.5], nn.Conv2d(1, 4, 1), "attention")
    model(torch.zeros(1, 1, 4, 4))
    save(model, tmp_path / "m.nx")
    other = load(
        tmp_path / "m.nx", model=MultiScaleModel([1, 0.5], nn.Conv2d(1, 4, 1), "attention")
    )
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(other(x), model(x))


def test_a_model_that_does_not_fit_is_left_unchanged(tmp_path):
    save(UNet(1, 1, [4, 8]), tmp_path / "m.nx")
    other = UNet(1, 2, [4, 8])
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(
        ValueError, match=r"misshapen \['head.conv.weight \(1, 4, 1, 1\) instead of"
    ):
        load(tmp_path / "m.nx", model=other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"missing \['level"):
        load(tmp_path / "m.nx", model=UNet(1, 1, [4, 8, 8]))
    with pytest.raises(ValueError, match=r"left over \['level"):
        load(tmp_path / "m.nx", model=UNet(1, 1, [4]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"must be a file of neurenix_ms\.save, got damage"):
        load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.nx"
    path.write_text("not a model")
    with pytest.raises(ValueError, match="got damage"):
        load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="got something else"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.nx")


def test_a_newer_or_unknown_content_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 99}, path)
    with pytest.raises(ValueError, match="version of at most 1, got 99"):
        load(path)
    torch.save({**content, "class": "Sequential"}, path)
    with pytest.raises(ValueError, match=r"must hold one of \[.*'UNet'.*\], got 'Sequential'"):
        load(path)
    torch.save({**content, "config": {"nonsense": 1}}, path)
    with pytest.raises(ValueError, match="config that does not fit its class"):
        load(path)
    torch.save({**content, "state_dict": {"a": 1}}, path)
    with pytest.raises(ValueError, match="must hold tensors only"):
        load(path)
    torch.save({key: content[key] for key in ("format", "version", "class")}, path)
    with pytest.raises(ValueError, match="must hold a class name and a state dict"):
        load(path)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"format": "neurenix_ms model", "x": Attack(marker)}, tmp_path / "a.nx")
    (tmp_path / "b.nx").write_bytes(pickle.dumps(Attack(marker)))
    for name in ("a.nx", "b.nx"):
        with pytest.raises(ValueError, match="got damage"):
            load(tmp_path / name)
    assert not marker.exists()


def test_a_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(UNet(1, 1, [8]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.nx"]


def test_a_killed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.nx"
    save(UNet(1, 1, [4]), path)
    script = f"""
        import os, signal, torch
        from neurenix_ms import UNet, save
        write = torch.save
        def killed(content, file):
            write(content, file)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = killed
        save(UNet(1, 1, [8]), {str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load(path).features == [4]
