"""Maps of a density: windows, conservation, files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms import from_pretrained
from neurenix_ms.command import main
from neurenix_ms.fitting import DensityMaps
from neurenix_ms.fitting import density as reading
from neurenix_ms.fitting.density import RelativeError, Unrolled
from neurenix_ms.fitting.running import fit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    t = np.arange(12)[:, None, None]
    y, x = np.mgrid[:16, :16]
    np.save("density.npy", 1e-3 * np.exp(-((x - 3 - 0.5 * t) ** 2 + (y - 8) ** 2) / 8))
    np.save("u.npy", 0.5 + 0 * x + t)
    return tmp_path


SMALL = ["--model.arguments.features=[4, 8]", "--trainer.max_epochs=1", "--data.batch_size=4"]


def test_a_density_is_predicted_with_its_mass():
    words = [*SMALL, "--data.fields=[u.npy]", "--data.unroll=2", "--trainer.max_epochs=3"]
    made = fit("density_maps", [*words, "--data.validation=0.3"], progress=False)
    model = from_pretrained(made.folder).eval()
    assert type(model).__name__ == "MassConserving"
    assert "relative error of a step on 2 held-out maps" in made.lines[0]
    density, u = np.load("density.npy"), np.load("u.npy")
    np.save("step.npy", np.stack([density[3], (u[3] + u[4]) / 2]))
    assert (
        main(["predict", str(made.folder), "step.npy", "next.npy", "--tile", "16", "--quiet"]) == 0
    )
    found = np.load("next.npy")
    np.testing.assert_allclose(found.sum(), density[3].sum(), rtol=1e-5)
    assert found.min() >= 0


def test_windows_have_the_means_of_the_fields():
    data = DensityMaps("density.npy", ["u.npy"], unroll=2, validation=0.34)
    seen, held_out = data.sets
    assert (len(seen), len(held_out)) == (6, 2)
    x, after = held_out[1]
    density, u = (np.load(f"{name}.npy").astype("float32") for name in ("density", "u"))
    np.testing.assert_array_equal(x[0], density[9])
    np.testing.assert_allclose(x[1:], [(u[9] + u[10]) / 2, (u[10] + u[11]) / 2])
    np.testing.assert_array_equal(after, density[10:12])
    np.save("many.npy", np.stack([density] * 4))
    many = DensityMaps("many.npy", num_samples="many", validation=0.25)
    assert [len(some) for some in many.sets] == [33, 11]
    assert many.sets[0][0][0].shape == (1, 16, 16)
    with pytest.raises(IndexError, match="index must be below 33, got 33"):
        many.sets[0][33]


def test_a_network_is_rolled_out_on_its_own_predictions():
    x = torch.rand(2, 3, 4, 4)
    found = Unrolled(lambda y: y[:, :1] + y[:, 1:], 2)(x)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack([x[:, 0] + x[:, 1], x.sum(1)], 1))
    assert Unrolled(lambda y: 2 * y, 3)(x[:, :1])[:, 2].equal(8 * x[:, 0])  # type: ignore[arg-type]
    assert RelativeError()(3 * x, x).item() == pytest.approx(4)


def test_maps_that_do_not_fit_are_refused():
    np.save("v.npy", np.zeros((12, 16, 15)))
    np.save("short.npy", np.zeros((2, 16, 16)))
    np.save("line.npy", np.zeros(9))
    for words, message in {
        "--data.fields=[v.npy]": r"the shape \(12, 16, 16\) of the density, got \(12, 16, 15\) in v.n",
        "--data.density=short.npy": r"must have 2 time steps to train on and as many to hold out, got 2",
        "--data.density=line.npy": r"must have a time and one to three spatial axes, got \(1, 9\)",
        "--data.field_keys=[a]": r"field_keys must be one for each of 0 fields, got \['a'\]",
        "--model.arguments.in_channels=2": r"in_channels must be 1 as in the data, got 2",
    }.items():
        with pytest.raises(ValueError, match=message):
            fit("density_maps", [*SMALL, words], progress=False)


def test_a_netcdf_file_has_land_areas_and_fill_values():
    xarray = pytest.importorskip("xarray")
    density, u = np.load("density.npy"), np.load("u.npy")
    for maps in (density, u):
        maps[:, 4:7, 11] = np.nan  # land
    lat = np.linspace(40, 70, 16)
    axes, places = ("time", "lat", "lon"), {"time": np.arange(12), "lat": lat}
    given = {"tracer": (axes, density), "u": (axes, u)}
    encoding = {name: {"dtype": "float32", "_FillValue": 1e30} for name in given}
    xarray.Dataset(given, places).to_netcdf("sea.nc", encoding=encoding)
    options = {"density_key": "tracer", "field_keys": ["u"], "land": "missing", "areas": "latitude"}
    x, _ = DensityMaps("sea.nc", ["sea.nc"], **options, unroll=2, validation=0.3).sets[0][0]
    area = np.cos(np.radians(lat)) / np.cos(np.radians(40))
    np.testing.assert_allclose(x[1, :, 0], area, rtol=1e-6)
    assert torch.equal(x[1], x[3])  # the areas are the first field of both steps
    assert not x[:, 4:7, 11].any()
    np.testing.assert_allclose(x[2, 0, 0], (u[0] + u[1])[0, 0] / 2)
    words = [f"--data.{name}={value}" for name, value in options.items()]
    words += [
        "--data.validation=0.3",
        "--data.density=sea.nc",
        "--data.fields=[sea.nc]",
        "--data.field_keys=[u]",
    ]
    made = fit("density_maps", [*SMALL, *words], progress=False)
    assert float(made.lines[0].rpartition(" ")[2]) < 1e-6  # the change of the mass
    xarray.DataArray(x[:3].numpy(), dims=("channel", "lat", "lon")).to_netcdf("step.nc")
    assert main(["predict", str(made.folder), "step.nc", "next.nc", "--quiet"]) == 0
    with xarray.open_dataset("next.nc") as file:
        found = file["data"].values[0, 0]
    assert not found[4:7, 11].any()
    mass = (found * area[:, None]).sum(), np.nansum(density[0] * area[:, None])
    np.testing.assert_allclose(*mass, rtol=1e-5)


@pytest.mark.parametrize("in_memory", [0, 2**28])
def test_land_is_where_the_fill_value_of_a_file_is(in_memory, monkeypatch):
    zarr = pytest.importorskip("zarr")
    monkeypatch.setattr(reading, "IN_MEMORY", in_memory)
    maps = np.load("density.npy").astype("float32")
    maps[:, 4:7, 11] = 9e36
    array = zarr.create_array("sea.zarr", shape=maps.shape, dtype=maps.dtype)
    array.attrs["_FillValue"] = 9e36
    array[:] = maps
    x, after = DensityMaps("sea.zarr", land="missing", unroll=1, validation=0.3).sets[0][0]
    land = torch.zeros(16, 16)
    land[4:7, 11] = 1
    assert torch.equal(x[1] == 0, land == 1)
    assert not x[0][land == 1].any()
    assert not after[0][land == 1].any()
    np.testing.assert_array_equal(x[0][land == 0], maps[0][land.numpy() == 0])


def test_a_netcdf_file_that_does_not_fit_is_refused():
    xarray = pytest.importorskip("xarray")
    density = np.load("density.npy").astype("float32")
    density[:, 2, 3] = np.nan
    axes = ("time", "lat", "lon")
    xarray.Dataset({"c": (axes, density)}).to_netcdf("plain.nc")
    times = np.delete(np.arange(13), 5)
    xarray.Dataset({"c": (axes, density)}, {"time": times}).to_netcdf("gap.nc")
    density[7, 9, 9] = np.nan
    xarray.Dataset({"c": (axes, density)}).to_netcdf("hole.nc")
    xarray.Dataset({"c": (axes, density * np.nan)}).to_netcdf("empty.nc")
    np.save("whole.npy", np.ones((12, 16, 16), "int32"))
    for name, options, message in (
        ("plain.nc", {}, r"must have a value everywhere, got 12 missing values"),
        (
            "plain.nc",
            {"land": "missing", "areas": "latitude"},
            r"with a coordinate lat or latitude, got plain.nc",
        ),
        ("gap.nc", {"land": "missing"}, r"got steps of 1 and 2 in 'time', the longest from 4 to 5"),
        ("empty.nc", {"land": "missing"}, r"values at the first time, got none: all would be land"),
        ("whole.npy", {"land": "missing"}, r"with NaN or a fill value, got int32 in whole.npy"),
    ):
        with pytest.raises(ValueError, match=message):
            DensityMaps(name, **options).setup()
    seen, _ = DensityMaps("hole.nc", land="missing").sets
    with pytest.raises(ValueError, match=r"got 1 missing .* the first in step 7 at \(9, 9\)"):
        seen[6]
    filled, _ = DensityMaps("hole.nc", land="missing", reading={"fill": 0.5}).sets
    assert filled[6][1][0, 9, 9] == 0.5
    assert filled[6][1][0, 2, 3] == 0  # land
