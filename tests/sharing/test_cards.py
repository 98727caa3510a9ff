"""The model card says what is known and measured."""

from pathlib import Path

import pytest
import torch

from neurenix_ms import FeatureFusion, UNet, create
from neurenix_ms.meter import count_flops
from neurenix_ms.sharing import save_pretrained
from neurenix_ms.sharing.cards import model_card


def test_a_card_has_what_hubs_and_people_read(tmp_path: Path):
    pytest.importorskip("safetensors")
    model = create("unet_milesial", features=[4, 8])
    save_pretrained(model, tmp_path / "cells", description="Finds cells.", license="MIT")
    text = (tmp_path / "cells" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: neurenix_ms\ntags: [pytorch, neurenix_ms, UNet]\n")
    assert "license: mit\n---\n\n# cells\n\nFinds cells.\n" in text
    count = sum(p.numel() for p in model.parameters())
    assert f"| parameters | {count:,} |" in text
    assert "| source | milesial/Pytorch-UNet, UNet(3, 2) |" in text
    assert "FLOPs" not in text


def test_what_differs_from_the_preset_is_said():
    changed = model_card(create("unet_milesial", in_channels=1), "x", None, None, None)
    assert "equal, with other `in_channels` |" in changed
    default = model_card(create("unet", features=[4], norm="instance"), "x", None, None, None)
    assert ", with other `features`, `bottleneck_channels`, `norm` |" in default
    former = model_card(create("unet_milesial_bilinear", features=[4]), "x", None, None, None)
    assert ", with other `features`, `bottleneck_channels` |" in former
    plain = model_card(create("attention_to_scale"), "x", None, None, None)
    assert "DeepLab inside |" in plain
    assert "| preset |" not in model_card(UNet(1, 1, [4]), "x", None, None, None)


def test_costs_are_those_of_a_forward_pass():
    model = UNet(1, 2, [4, 8]).train()
    text = model_card(model, "x", [2, 1, 24, 20], None, None)
    flops = count_flops(lambda: model(torch.zeros(2, 1, 24, 20)))
    assert f"| FLOPs of a forward pass at 2x1x24x20 | {flops:,} |" in text
    assert "| receptive field | at most " in text
    assert model.training
    whole = model_card(UNet(1, 2, [4], norm="instance"), "x", [1, 1, 16, 16], None, None)
    assert "see the whole input |" in whole
    pair = model_card(FeatureFusion([3, 5], 4), "x", [[1, 3, 8, 8], [1, 5, 4, 4]], None, None)
    assert "at 1x3x8x8 and 1x5x4x4 |" in pair


def test_a_network_that_does_not_run_there_is_named(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"the network must run on input_shape \[\[1, 2, 8, 8\]\], got"
    ):
        save_pretrained(UNet(1, 1, [4]), tmp_path / "new", input_shape=[1, 2, 8, 8])
    with pytest.raises(ValueError, match="license must be a name such as 'mit', got 'a: b'"):
        save_pretrained(UNet(1, 1, [4]), tmp_path / "new", license="a: b")
    assert not (tmp_path / "new").exists()
