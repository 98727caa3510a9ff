"""Full disks and read-only folders as the system makes them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
NOBODY = 65534


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a number of bytes: writing more raises an OSError."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk of some bytes, in memory; skips the test where this is not allowed."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs the command mount of Linux")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves a number of bytes on a disk, and return it."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    found = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, found.f_bavail * found.f_bsize - left)))
    return filler


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write into a folder; the superuser, who needs none, becomes another one.

    Paths must be relative to a folder that everybody may enter, such as `folder` as the current one.
    """
    mode, is_root = folder.stat().st_mode, os.geteuid() == 0
    folder.chmod(0o555)
    try:
        if is_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(mode)
