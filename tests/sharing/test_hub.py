"""Repositories of a hub work like folders; the client is replaced by one that has no network."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neurenix_ms import UNet, from_pretrained
from neurenix_ms.sharing import push_to_hub, save_pretrained

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")


class Hub:
    """Repositories in a folder, and the calls that were made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[Any] = []

    def snapshot_download(self, repo_id: str, **options) -> str:
        self.calls.append(("download", repo_id, options))
        if options["local_files_only"] and not (self.root / "cache" / repo_id).is_dir():
            raise hub.errors.LocalEntryNotFoundError("not cached")
        shutil.copytree(self.root / repo_id, self.root / "cache" / repo_id, dirs_exist_ok=True)
        return str(self.root / "cache" / repo_id)

    def api(self, **options):
        self.calls.append(("api", options))
        return SimpleNamespace(create_repo=self.create_repo, upload_folder=self.upload_folder)

    def create_repo(self, repo_id: str, **options) -> None:
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, repo_id: str, folder_path: Path, **options):
        self.calls.append(("upload", repo_id, options))
        shutil.copytree(folder_path, self.root / repo_id)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(hub, "HfApi", made.api)
    return made


def test_what_is_pushed_is_read(fake: Hub):
    model = UNet(1, 1, [4]).eval()
    url = model.push_to_hub("me/cells", private=True, token="t", description="Finds cells.")
    assert url == "hub/me/cells/commit/1"
    assert fake.calls[0] == ("api", {"token": "t", "library_name": "neurenix_ms"})
    assert fake.calls[1] == ("create", "me/cells", {"private": True, "exist_ok": True})
    card = (fake.root / "me" / "cells" / "README.md").read_text()
    assert "# cells\n\nFinds cells.\n" in card
    x = torch.rand(1, 1, 9, 8)
    for _ in range(2):
        other = UNet.from_pretrained("me/cells", download=True, revision="main").eval()
        assert torch.equal(other(x), model(x))
        other = from_pretrained("me/cells").eval()  # the copy of the download
        assert torch.equal(other(x), model(x))
    kind, repo_id, options = fake.calls[3]
    assert (kind, repo_id, options["revision"]) == ("download", "me/cells", "main")
    assert options["allow_patterns"] == ["model.safetensors", "config.json", "README.md"]


def test_nothing_is_downloaded_unless_asked_to(fake: Hub):
    with pytest.raises(ValueError, match=r"got neither; download=True asks the hub for it"):
        from_pretrained("me/cells")
    assert [options["local_files_only"] for _, _, options in fake.calls] == [True]


def test_a_folder_never_asks_the_hub(fake: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    save_pretrained(UNet(1, 1, [4]), "me/cells")
    assert from_pretrained("me/cells").features == [4]
    with pytest.raises(ValueError, match="is a folder, for which download and revision have no"):
        from_pretrained("me/cells", download=True)
    assert fake.calls == []


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x", "", "/tmp/x", "me/ce lls"])
def test_other_names_are_refused(name: str, fake: Hub):
    with pytest.raises(
        ValueError, match="a network must be in a folder, or in a repository 'owner/"
    ):
        from_pretrained(name, download=True)
    with pytest.raises(ValueError, match="a repository must be given as 'owner/name', got"):
        push_to_hub(UNet(1, 1, [4]), name)
    assert fake.calls == []


def test_nothing_is_uploaded_if_the_network_cannot_be_written(fake: Hub):
    with pytest.raises(ValueError, match="must be a network of neurenix_ms to be shared"):
        push_to_hub(torch.nn.Linear(1, 1), "me/cells")
    assert fake.calls == []
