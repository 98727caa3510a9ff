"""Files and folders are replaced as a whole, or not at all."""

import os
from pathlib import Path

import pytest
from disks import POSIX, files_up_to, read_only

from neurenix_ms._core.io.atomic import (
    move,
    replacing,
    replacing_folder,
    replacing_path,
    write_atomically,
)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "a").write_text("old")
    (tmp_path / "file.npy").write_text("old")
    return tmp_path


def make(path: Path, folder: bool) -> None:
    if folder:
        path.mkdir()
        path /= "a"
    path.write_text("new")


@pytest.mark.parametrize("folder", [False, True], ids=["by a file", "by a folder"])
@pytest.mark.parametrize("name", ["folder.zarr", "file.npy", "nothing.h5"])
def test_whatever_is_there_is_replaced(there: Path, name: str, folder: bool):
    others = {path.name for path in there.iterdir()} - {name}
    with replacing_path(there / name) as temporary:
        assert temporary.suffix == (there / name).suffix
        make(temporary, folder)
    assert {path.name for path in there.iterdir()} == others | {name}
    assert (there / name / "a" if folder else there / name).read_text() == "new"


@pytest.mark.parametrize("folder", [False, True], ids=["by a file", "by a folder"])
@pytest.mark.parametrize("name", ["folder.zarr", "file.npy"])
def test_an_error_leaves_what_is_there(there: Path, name: str, folder: bool):
    def fail(temporary: Path):
        make(temporary, folder)
        raise KeyError

    with pytest.raises(KeyError), replacing_path(there / name) as temporary:
        fail(temporary)
    assert {path.name for path in there.iterdir()} == {"folder.zarr", "file.npy"}
    assert (there / "folder.zarr/a").read_text() == (there / "file.npy").read_text() == "old"


@pytest.mark.parametrize("name", ["folder.zarr", "file.npy"])
def test_a_folder_that_cannot_be_moved_leaves_what_is_there(
    there: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    replace, made = os.replace, there / "made"
    make(made, folder=True)

    def fail(source, target):
        if source == made:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        move(made, there / name)
    assert {path.name for path in there.iterdir()} == {"folder.zarr", "file.npy", "made"}
    assert (there / "folder.zarr/a").read_text() == (there / "file.npy").read_text() == "old"


@pytest.mark.parametrize("name", ["folder.zarr", "file.npy"])
def test_a_kill_between_two_renames_loses_nothing(there: Path, name: str):
    made = there / "made"
    make(made, folder=True)
    pid = os.fork()
    if pid == 0:
        replace = os.replace

        def kill(source, target):
            if source == made:
                os._exit(9)
            replace(source, target)

        os.replace = kill
        move(made, there / name)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    old = there / "made.old"
    assert (old / "a" if old.is_dir() else old).read_text() == "old"
    move(made, there / name)  # as a resumed run does
    assert (there / name / "a").read_text() == "new"
    assert {path.name for path in there.iterdir()} == {"folder.zarr", "file.npy"}


def test_a_link_to_a_folder_is_replaced_not_followed(there: Path):
    (there / "link").symlink_to("folder.zarr")
    with replacing(there / "link") as file:
        file.write(b"new")
    assert (there / "link").read_bytes() == b"new"
    assert (there / "folder.zarr/a").read_text() == "old"


def test_a_folder_with_other_files_is_not_replaced(there: Path):
    with (
        pytest.raises(ValueError, match=r"hold \['b'\] only, got \['a'\] in it"),
        replacing_folder(there / "folder.zarr", ["b"]),
    ):
        pass
    assert (there / "folder.zarr/a").read_text() == "old"


@POSIX
def test_errors_name_the_target_not_the_temporary_file(there: Path, monkeypatch):
    monkeypatch.chdir(there)
    with files_up_to(10), pytest.raises(OSError, match=r"File too large: 'new.npy'$"):
        write_atomically("new.npy", bytes(11))
    with read_only(there), pytest.raises(PermissionError, match=r"Permission denied: 'new.npy'$"):
        write_atomically("new.npy", b"")
    with pytest.raises(OSError, match=r"cannot write new.npy"), replacing_path("new.npy") as made:
        raise OSError(f"a library cannot write {made}")
    with pytest.raises(FileNotFoundError, match=r"'other'$"), replacing_path("new.npy"):
        Path("other").read_bytes()
    assert {path.name for path in there.iterdir()} == {"folder.zarr", "file.npy"}
