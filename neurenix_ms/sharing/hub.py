"""Reading from and uploading to a hub of models."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms.sharing.reading import read_folder
from neurenix_ms.sharing.writing import CARD, CONFIG, WEIGHTS, save_pretrained

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@checked
def from_pretrained(
    source: str | os.PathLike[str],
    *,
    cls: type | None = None,
    map_location: str | torch.device | None = None,
    download: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """Read a network that `save_pretrained` or `push_to_hub` wrote, without running code of it.

    It is safe for folders from untrusted sources: the class is looked up by its name in this library,
    arguments are plain values, and no network is built that is larger than the weights. Nothing is
    downloaded unless `download` is True.

    Args:
        source: A folder, or the id `owner/name` of a repository of the Hugging Face Hub.
        cls: Class that the network must have; `UNet.from_pretrained` fills it in.
        map_location: Device of the tensors; the CPU by default.
        download: Whether to download the repository; False reads the copy of an earlier download.
        revision: Branch, tag or commit of the repository.
        token: For a private repository; by default the one that the client of the hub has stored.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: If there is no such folder or copy, a file is missing, corrupted or does not fit, a
            name or argument is unknown, or the network is of another class.
        ImportError: If safetensors, or for a repository huggingface_hub, is missing.

    Examples:
        >>> import tempfile
        >>> from neurenix_ms import UNet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     UNet(1, 1, features=[4]).save_pretrained(f"{folder}/mine")
        ...     UNet.from_pretrained(f"{folder}/mine").features
        [4]
    """
    folder = source
    if not os.path.isdir(source):
        folder = _from_hub(str(source), download, revision, token)
    elif download or revision is not None:
        raise ValueError(f"{source} is a folder, for which download and revision have no meaning")
    model = read_folder(folder, map_location)
    if cls is not None and not isinstance(model, cls):
        raise ValueError(f"{source} must hold a {cls.__name__}, got a {type(model).__name__}")
    return model


@checked
def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload a network of neurenix_ms",
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    description: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a network to a repository of the Hugging Face Hub, which is created if it does not exist.

    Use it to publish a network; others read it by `from_pretrained(repo_id, download=True)`. The files
    are those of `save_pretrained`.

    Args:
        model: A network of this library.
        repo_id: Id `owner/name` of the repository.
        private: Whether a new repository can be read by its owner only.
        revision: Branch to upload to.
        token: By default the one that the client of the hub has stored.
        commit_message: Message of the commit.
        input_shape: Shape `(B, C, *S)` of an input, or the shapes of a list of them; with it, the model
            card lists FLOPs, peak memory and receptive field for that shape.
        description: Text for the model card.
        license: Name for the model card, such as "mit".

    Returns:
        Address of the commit.

    Raises:
        ValueError: If `repo_id` is not a valid id, or the network cannot be written. Nothing is uploaded
            then.
        ImportError: If huggingface_hub or safetensors is missing.

    Examples:
        >>> from neurenix_ms import UNet
        >>> push_to_hub(UNet(1, 1, features=[4]), "mine")
        Traceback (most recent call last):
        ValueError: a repository must be given as 'owner/name', got 'mine'
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"a repository must be given as 'owner/name', got {repo_id!r}")
    hub = _client()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / repo_id.partition("/")[2]
        save_pretrained(
            model, made, input_shape=input_shape, description=description, license=license
        )
        api = hub.HfApi(token=token, library_name="neurenix_ms")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=made, commit_message=commit_message, revision=revision
        )
    return str(commit.commit_url)


def _from_hub(repo_id: str, download: bool, revision: str | None, token: str | None) -> str:
    """Return the folder of a repository in the cache of the hub's client."""
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(
            f"a network must be in a folder, or in a repository 'owner/name', got {repo_id!r}"
        )
    hub = _client()
    try:
        return hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            local_files_only=not download,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            library_name="neurenix_ms",
        )
    except hub.errors.LocalEntryNotFoundError as error:
        hint = "check the connection" if download else "download=True asks the hub for it"
        raise ValueError(
            f"{repo_id} must be a folder, or a repository that was downloaded before, got neither; "
            f"{hint}"
        ) from error


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            "the hub needs huggingface_hub: pip install 'neurenix_ms[hub]'"
        ) from error
    return huggingface_hub
