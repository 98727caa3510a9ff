"""Arrays on disk slice like NumPy's, whatever the format, and are refused where something is wrong."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from neurenix_ms.datasets import arrays, create_array, open_array
from neurenix_ms.execution import TiledModel

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
nibabel = pytest.importorskip("nibabel")
xarray = pytest.importorskip("xarray")

VOLUME = np.random.default_rng(0).integers(0, 1000, (5, 7, 6)).astype("uint16")


def write_npy(folder):
    np.save(folder / "a.npy", VOLUME)
    return folder / "a.npy", {}


def write_npz(folder):
    np.savez(folder / "a.npz", other=np.zeros(3), scan=VOLUME)
    return folder / "a.npz", {"key": "scan"}


def write_fortran_npz(folder):
    np.savez(folder / "a.npz", scan=np.asfortranarray(VOLUME))
    return folder / "a.npz", {}


def write_raw(folder):
    (folder / "a.raw").write_bytes(b"head" + VOLUME.astype(">u2").tobytes())
    return folder / "a.raw", {"shape": VOLUME.shape, "dtype": ">u2", "offset": 4}


def write_zarr(version):
    def write(folder):
        path = folder / "a.zarr"
        zarr.save_array(path, VOLUME, zarr_format=version)
        return path, {}

    return write


def write_zarr_group(folder):
    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("deep/scan", data=VOLUME, chunks=(2, 3, 4))
    group.create_array("other", data=np.zeros(3))
    return folder / "a.zarr", {"key": "deep/scan"}


def write_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["deep/scan"] = VOLUME
        file["deep/scan"].attrs["units"] = "HU"
    return folder / "a.h5", {"key": "deep/scan"}


def write_netcdf(folder):
    data = xarray.Dataset({"scan": (("time", "lat", "lon"), VOLUME, {"units": "m"})})
    data.to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder / "a.nc", {}


def write_tiff(folder):
    tifffile.imwrite(folder / "a.tif", VOLUME, photometric="minisblack")
    return folder / "a.tif", {}


def write_stack(folder):
    (folder / "stack").mkdir()
    for number, image in enumerate(VOLUME):
        tifffile.imwrite(folder / "stack" / f"{number:03}.tif", image)
    return folder / "stack", {}


def write_nifti(folder):
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), folder / "a.nii")
    return folder / "a.nii", {}


WRITERS = {
    "npy": write_npy,
    "npz": write_npz,
    "npz, column-major": write_fortran_npz,
    "raw": write_raw,
    "zarr 2": write_zarr(2),
    "zarr 3": write_zarr(3),
    "zarr group": write_zarr_group,
    "hdf5": write_hdf5,
    "netcdf": write_netcdf,
    "tiff": write_tiff,
    "tiff stack": write_stack,
    "nifti": write_nifti,
}
EVERY = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
INDICES = [
    np.s_[...],
    np.s_[2],
    np.s_[-1, 1:3],
    np.s_[1:4, ..., 5],
    np.s_[::2, 1::3, :0],
    np.s_[3, 4, 5],
    np.s_[10:, :, -2:],
]


@EVERY
def test_slices_are_those_of_numpy(write, tmp_path):
    path, options = write(tmp_path)
    array = open_array(path, **options)
    assert (array.shape, array.ndim, len(array)) == (VOLUME.shape, 3, 5)
    for index in INDICES:
        piece = array[index]
        assert piece.shape == VOLUME[index].shape
        np.testing.assert_array_equal(piece, VOLUME[index])
    np.testing.assert_array_equal(np.asarray(array), VOLUME)


@EVERY
def test_images_have_the_axes_of_networks(write, tmp_path):
    path, options = write(tmp_path)
    array = open_array(path, **options)
    for dims, first, expected in [
        (3, "channels", VOLUME[None, None]),
        (2, "channels", VOLUME[None]),
        (2, "batch", VOLUME[:, None]),
        (1, "channels", VOLUME),
    ]:
        images = array.images(dims, first)
        assert images.shape == expected.shape
        for index in [np.s_[...], np.s_[0, 0], np.s_[:, :, 1:4], np.s_[:1, :0]]:
            np.testing.assert_array_equal(images[index], expected[index])


@EVERY
def test_a_copy_in_another_process_opens_the_file_again(write, tmp_path):
    path, options = write(tmp_path)
    array = open_array(path, **options).images(3)
    other = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(other[0, 0], VOLUME)


def test_what_the_file_says_is_kept(tmp_path):
    path, options = write_hdf5(tmp_path)
    assert open_array(path, **options).units == "HU"
    path, _ = write_netcdf(tmp_path)
    array = open_array(path)
    assert (array.units, array.axes) == ("m", ("time", "lat", "lon"))
    assert array.images(3).axes == (None, None, "time", "lat", "lon")
    assert "units='m'" in repr(array)
    path, _ = write_nifti(tmp_path)
    assert open_array(path).attributes["spacing"] == (1.0, 1.0, 1.0)


def test_the_levels_of_a_pyramid_are_keys(tmp_path):
    path = tmp_path / "a.tif"
    image = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    with tifffile.TiffWriter(path) as file:
        file.write(image, subifds=1, tile=(16, 16))
        file.write(image[::2, ::2], subfiletype=1, tile=(16, 16))
    np.testing.assert_array_equal(open_array(path)[:], image)
    np.testing.assert_array_equal(open_array(path, 1)[3:9], image[6:18:2, ::2])
    assert np.array_equal(open_array(path, "1"), open_array(path, 1))  # as of a command line
    with pytest.raises(ValueError, match="key must be the number of one of 2 levels, got 5"):
        open_array(path, 5)


def test_missing_values_are_counted_replaced_or_kept(tmp_path):
    field = np.arange(24.0, dtype="float32").reshape(4, 6)
    field[2, 1] = field[3, 5] = np.nan
    np.save(tmp_path / "a.npy", field)
    strict = open_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(strict[:2], field[:2])
    with pytest.raises(ValueError, match=r"got 2 missing values of 18 .*first at \(2, 1\)"):
        strict[1:]
    with pytest.raises(ValueError, match=r"got 1 missing values of 1 .*first at \(3, 5\)"):
        strict[3, 5]
    filled = open_array(tmp_path / "a.npy", fill=-1)
    assert filled[2, 1] == filled[3, 5] == -1
    assert np.isnan(open_array(tmp_path / "a.npy", fill="keep")[:]).sum() == 2


def test_the_fill_value_of_a_file_is_missing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.array([1, -999, 3], "int16")
        file["x"].attrs["_FillValue"] = np.array([-999], "int16")
    with pytest.raises(ValueError, match="got 1 missing values of 3"):
        open_array(tmp_path / "a.h5")[:]
    assert open_array(tmp_path / "a.h5", fill=0)[:].tolist() == [1, 0, 3]
    data = xarray.Dataset({"x": ("lat", np.array([1.0, np.nan, 3.0]))})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"x": {"_FillValue": -1.0}})
    with pytest.raises(ValueError, match=r"1 missing values of 3 .* the first at \(1,\)"):
        open_array(tmp_path / "a.nc")[:]


def test_keys_that_there_are_stand_in_the_message(tmp_path):
    path, _ = write_zarr_group(tmp_path)
    with pytest.raises(
        ValueError, match=r"one of 'deep/scan' \(5, 7, 6\), 'other' \(3,\) .*got 'x'"
    ):
        open_array(path, "x")
    path, _ = write_npy(tmp_path)
    with pytest.raises(ValueError, match=r"key must be None for .* which holds one array, got 'x'"):
        open_array(path, "x")


@pytest.mark.parametrize("name", ["npy", "npz", "hdf5", "netcdf", "tiff", "nifti"])
def test_half_a_file_is_refused(name, tmp_path):
    path, options = WRITERS[name](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"must be|must have"):
        open_array(path, **options)[:]


def test_a_stack_of_images_of_two_sizes_is_refused(tmp_path):
    for number, size in enumerate([(4, 5), (4, 6)]):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros(size, "uint8"))
    with pytest.raises(
        ValueError, match=r"must hold images of one size, got \[\(4, 5\), \(4, 6\)\]"
    ):
        open_array(tmp_path)


def test_a_raw_file_of_another_size_is_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(10))
    with pytest.raises(ValueError, match=r"must have 12 bytes for shape \(3, 2\), .* got 10"):
        open_array(tmp_path / "a.raw", shape=(3, 2), dtype="u2")
    with pytest.raises(ValueError, match="a raw file needs shape and dtype, got None and None"):
        open_array(tmp_path / "a.raw")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "banana"}, "dtype must be a type of NumPy, got 'banana'"),
        ({"dtype": "O"}, "dtype must be a type of numbers or booleans, got 'O'"),
        ({"shape": (3, -2)}, r"shape\[1\] must be at least 1, got -2"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
    ],
)
def test_a_layout_without_a_meaning_is_named(options, words, tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(12))
    with pytest.raises(ValueError, match=f"^{words}"):
        open_array(tmp_path / "a.raw", **{"shape": (3, 2), "dtype": "u2", **options})


def test_a_type_that_cannot_be_written_is_named(tmp_path):
    for dtype, words in (("zzz", "a type of NumPy"), ("O", "a type of numbers or booleans")):
        with pytest.raises(ValueError, match=f"dtype must be {words}, got '{dtype}'"):
            create_array(tmp_path / "a.npy", (2,), dtype)
    assert not list(tmp_path.iterdir())


def test_a_file_that_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BETWEEN_CHECKS", 0)
    path, _ = write_npy(tmp_path)
    array = open_array(path)
    np.save(path, VOLUME[:2])
    with pytest.raises(ValueError, match="must not change while it is open"):
        array[0]
    path.unlink()
    with pytest.raises(ValueError, match="must not change while it is open"):
        array[0]


def test_a_file_is_checked_once_in_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BETWEEN_CHECKS", 1000)
    path, _ = write_npy(tmp_path)
    array = open_array(path)
    os.utime(path, ns=(1, 1))
    assert (array[0] == VOLUME[0]).all()
    with pytest.raises(ValueError, match="must not change while it is open"):
        array.check_unchanged()


@pytest.mark.parametrize("kind", ["zarr 2", "zarr 3", "zarr group", "tiff stack"])
@pytest.mark.parametrize("how", ["written", "removed", "added", "older"])
def test_a_folder_in_which_a_file_changed_is_refused(kind, how, tmp_path, monkeypatch):
    path, options = WRITERS[kind](tmp_path)
    array = open_array(path, **options)
    copied = pickle.dumps(array)
    array[0]
    array.check_unchanged()
    named = [file for file in path.rglob("*") if file.is_file()]
    files = [file for file in named if file.suffix != ".json" and not file.name.startswith(".z")]
    content, times = files[0].read_bytes(), files[0].stat()
    if how in ("removed", "written"):
        files[0].unlink()
    if how == "written":
        files[0].write_bytes(content + b"0")
    elif how == "added":
        (path / "new").write_text("")
    elif how == "older":
        os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns - 1))
    for call in (array.check_unchanged, lambda: pickle.loads(copied)):
        with pytest.raises(ValueError, match="must not change while it is open, got another size"):
            call()
    monkeypatch.setattr(arrays, "LONGEST_WAIT", 0)
    monkeypatch.setattr(arrays, "BETWEEN_CHECKS", 0)
    array = open_array(path, **options)
    (path / "another").write_text("")
    with pytest.raises(ValueError, match="must not change while it is open, got another size"):
        array[0]


def test_changes_in_a_folder_are_looked_for_a_small_part_of_the_time(tmp_path, monkeypatch):
    path, options = write_zarr(3)(tmp_path)
    plain, now = arrays.state_of, 0
    calls = []

    def counted(path):
        nonlocal now
        calls.append(now)
        now += 2  # seconds that it takes
        return plain(path)

    monkeypatch.setattr(arrays, "state_of", counted)
    monkeypatch.setattr(arrays.time, "monotonic", lambda: now)
    array = open_array(path, **options)
    for _ in range(500):
        array[0]
        now += 1  # second of other work
    assert calls == [0, 202, 404]
    assert plain(path, 1) != plain(path)


def test_the_position_of_a_missing_value_is_that_in_the_file(tmp_path):
    volume = np.zeros((3, 20, 30), "float32")
    volume[1, 3, 4] = volume[2, 10, 5] = np.nan
    np.save(tmp_path / "a.npy", volume)
    array = open_array(tmp_path / "a.npy")
    for first in ("channels", "batch"):
        with pytest.raises(ValueError, match=r"2 missing .* of 1800 .* first at \(1, 3, 4\);"):
            array.images(2, first)[...]
    with pytest.raises(ValueError, match=r"1 missing .* of 200 .* first at \(2, 10, 5\);"):
        array.images(3)[0, 0, 2:, ::2, 5:25]
    assert not array.images(3)[0, 0, :1].any()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_run(tmp_path):
    numcodecs = pytest.importorskip("numcodecs")
    marker = tmp_path / "marker"
    np.save(tmp_path / "a.npy", np.array([Attack(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):  # noqa: PT011  (NumPy's own words)
        open_array(tmp_path / "a.npy")
    for place in ("filters", "compressors"):
        folder = tmp_path / f"{place}.zarr"
        options = {"filters": None, "compressors": None, place: [numcodecs.Pickle()]}
        zarr.create_array(folder, shape=(1,), dtype="f4", zarr_format=2, **options)
        (folder / "0").write_bytes(pickle.dumps(Attack(marker)))
        with pytest.raises(ValueError, match="pickle"):
            open_array(folder)[:]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: open_array(f / "none.npy"), "must be a file or folder that exists"),
        (lambda f: open_array(f), "path must end in one of"),
        (lambda f: open_array(f / "a.npy", dtype="f4"), "are for raw binary files"),
        (lambda f: open_array(f / "a.npy").images(2, "time"), "first must be one of"),
        (lambda f: open_array(f / "b.npy").images(1), "and at most two others, got shape"),
        (lambda f: create_array(f / "a.npy", (3,)), "path must be free, or overwrite=True"),
        (lambda f: create_array(f / "c.nii", (3,)), "path must have an ending of one of"),
        (lambda f: create_array(f / "no" / "c.npy", (3,)), "in a folder that exists"),
        (lambda f: create_array(f / "c.zarr", (3,), chunks=(1, 1)), "chunks must have 1 lengths"),
        (lambda f: create_array(f / "c.nc", (3,), axes=["x", "y"]), "axes must have 1 names"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    np.save(tmp_path / "b.npy", np.zeros((1, 1, 1, 1)))
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


@pytest.mark.parametrize("bad", ["x", 1.5, [0, 1], None, True, slice(None, None, -1), (0, 0, 0, 0)])
def test_an_index_of_another_kind_is_refused(bad, tmp_path):
    path, _ = write_npy(tmp_path)
    with pytest.raises(IndexError, match=r"integers and slices|steps of 1|at most 3 entries"):
        open_array(path)[bad]
    with pytest.raises(IndexError, match="out of range for axis 0 of length 5"):
        open_array(path)[5]


def test_a_compressed_archive_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=VOLUME)
    assert zipfile.is_zipfile(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="must not be compressed"):
        open_array(tmp_path / "a.npz")


@pytest.mark.parametrize("ending", ["npy", "zarr", "h5", "nc", "tif"])
def test_what_tiles_write_is_what_the_model_gives(ending, tmp_path):
    torch.manual_seed(0)
    model = nn.Conv3d(1, 2, 3, padding=1).eval()
    path, options = write_hdf5(tmp_path)
    x = open_array(path, **options).images(3)
    out = create_array(
        tmp_path / f"out.{ending}", (1, 2, *VOLUME.shape), units="m", axes=list("bczyx")
    )
    TiledModel(model, 4, spatial_dims=3)(x, out=out)
    for finish in ("flush", "close"):
        getattr(out, finish, lambda: None)()
    with torch.no_grad():
        expected = model(torch.from_numpy(VOLUME.astype("float32"))[None, None])
    read = open_array(tmp_path / f"out.{ending}")
    np.testing.assert_allclose(read[...].reshape(expected.shape), expected, rtol=1e-4, atol=1e-3)
    if ending in ("zarr", "h5", "nc"):
        assert (read.units, read.axes) == ("m", tuple("bczyx"))
