"""Results in NetCDF files have the grid, units and times of their source, as xarray reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neurenix_ms as nms
from neurenix_ms.command import main
from neurenix_ms.datasets import create_array, open_array
from neurenix_ms.fitting import DensityMaps
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.prediction import forecast_file, predict_file
from neurenix_ms.timestepping import TimeStepper

xarray = pytest.importorskip("xarray")

LAT, LON = np.linspace(40, 50, 16), np.linspace(-20, -8, 12)
SAMPLES = np.random.default_rng(0).random((4, 16, 12)).astype("float32")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    nms.save(nms.UNet(1, 1, [4], norm=None), "model.nx")
    sea().to_netcdf("sea.nc")
    return tmp_path


def sea() -> Any:
    """A field on a grid with all that the CF conventions know of one."""
    edges = np.stack([LAT - 1 / 3, LAT + 1 / 3], 1)
    data = xarray.Dataset(
        {
            "sst": (("time", "lat", "lon"), SAMPLES, {"units": "degC", "grid_mapping": "crs"}),
            "lat_bnds": (("lat", "bnds"), edges),
            "time_bnds": (("time", "bnds"), np.array([[0, 2], [2, 4], [4, 6], [6, 8]])),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
        },
        {
            "time": (
                "time",
                np.array([1, 3, 5, 7]),
                {
                    "units": "days since 2020-01-01",
                    "calendar": "proleptic_gregorian",
                    "bounds": "time_bnds",
                },
            ),
            "lat": ("lat", LAT, {"units": "degrees_north", "bounds": "lat_bnds"}),
            "lon": ("lon", LON, {"units": "degrees_east", "standard_name": "longitude"}),
            "depth": ((), np.float32(0.5), {"units": "m"}),
            "basin": (("lat", "lon"), np.arange(192).reshape(16, 12), {"long_name": "basin"}),
            "name": ("time", ["a", "b", "c", "d"]),
        },
    )
    data["time"].encoding["dtype"] = "int64"
    return data


def opened(path: str, **options: Any) -> Any:
    with xarray.open_dataset(path, **options) as file:
        return file.load()


def test_a_result_has_the_grid_of_its_source():
    predict_file("model.nx", "sea.nc", "out.nc", key="sst", first="batch", tile_size=8)
    found, before = opened("out.nc"), opened("sea.nc")
    assert found["data"].dims == ("time", "channel", "lat", "lon")
    assert set(found["data"].coords) == set(before["sst"].coords)
    for name in ("time", "lat", "lon", "depth", "basin", "name", "lat_bnds", "time_bnds", "crs"):
        xarray.testing.assert_identical(found[name].variable, before[name].variable)
    assert found["data"].attrs == {"grid_mapping": "crs"}  # the model may give another quantity
    summed = before["sst"] + found["data"].isel(channel=0)  # aligned by equal coordinates
    assert summed.shape == (4, 16, 12)
    array = open_array("out.nc")  # the bounds are no array of their own
    assert array.axes == ("time", "channel", "lat", "lon")


def test_coordinates_of_an_axis_of_another_length_are_left_out():
    nms.save(nms.BlurPool(1), "half.nx")
    predict_file("half.nx", "sea.nc", "out.nc", key="sst", first="batch", spatial_dims=2)
    found = opened("out.nc")
    assert found["data"].shape == (4, 1, 8, 6)
    assert set(found.variables) == {"data", "time", "time_bnds", "depth", "name", "crs"}


def test_labels_have_neither_channels_nor_units():
    nms.save(nms.UNet(1, 3, [4], norm=None), "model.nx")
    words = "predict model.nx sea.nc out.nc --key sst --first batch --reduce argmax --quiet"
    assert main([*words.split(), "--units", "1"]) == 0
    found = opened("out.nc")["data"]
    assert (found.dims, found.attrs["units"]) == (("time", "lat", "lon"), "1")
    assert found.indexes["lat"].equals(sea().indexes["lat"])


def test_the_time_of_a_forecast_moves_on():
    words = "predict model.nx sea.nc out.nc --key sst --first batch --quiet --time-step 2"
    assert main(words.split()) == 0
    found = opened("out.nc", decode_times=False)
    given = opened("sea.nc", decode_times=False)["time"].dtype  # of 64 or of 32 bits, by the writer
    assert given.kind == "i"
    assert found["time"].dtype == given
    np.testing.assert_array_equal(found["time"], [3, 5, 7, 9])
    np.testing.assert_array_equal(found["time_bnds"], [[2, 4], [4, 6], [6, 8], [8, 10]])
    assert found["data"].attrs["units"] == "degC"
    assert str(opened("out.nc")["time"].values[0]).startswith("2020-01-04")
    predict_file(
        "model.nx", "sea.nc", "half.nc", key="sst", first="batch", time_step=0.5, overwrite=True
    )
    np.testing.assert_array_equal(
        opened("half.nc", decode_times=False)["time"], [1.5, 3.5, 5.5, 7.5]
    )


def test_frames_are_followed_by_the_next_ones():
    nms.save(nms.UNet(4, 2, [4], norm=None), "model.nx")
    predict_file("model.nx", "sea.nc", "out.nc", key="sst", time_step=2)
    found = opened("out.nc", decode_times=False)
    assert found["data"].dims == ("batch", "time", "lat", "lon")
    np.testing.assert_array_equal(found["time"], [9, 11])
    assert "time_bnds" not in found.variables
    assert "bounds" not in found["time"].attrs
    assert "name" not in found.variables
    predict_file("model.nx", "sea.nc", "plain.nc", key="sst")
    assert "time" not in opened("plain.nc").variables


def test_a_time_step_needs_times_and_a_file_that_holds_them():
    data = xarray.DataArray(SAMPLES[:1], {"lat": LAT}, ("channel", "lat", "lon"))
    data.to_netcdf("plain.nc")
    words = r"needs a source with a coordinate of time, got plain.nc with \['lat'\]"
    with pytest.raises(ValueError, match=words):
        predict_file("model.nx", "plain.nc", "out.nc", time_step=1)
    with pytest.raises(ValueError, match=r"time_step needs a target that ends in .nc, got out.npy"):
        predict_file("model.nx", "sea.nc", "out.npy", key="sst", first="batch", time_step=1)
    assert not list(Path().glob("*out*"))


def test_only_the_time_itself_moves_on():
    started = (
        sea()
        .isel(time=0)
        .assign_coords(
            start=(
                (),
                0.0,
                {"standard_name": "forecast_reference_time", "units": "days since 2020-01-01"},
            )
        )
    )
    started.to_netcdf("one.nc")
    predict_file("model.nx", "one.nc", "out.nc", key="sst", time_step=2)
    found = opened("out.nc", decode_times=False)
    assert (found["time"].item(), found["start"].item(), found["time"].dims) == (3, 0, ())


def test_a_step_of_densities_leads_to_the_next_time():
    times = {"units": "days since 2020-01-01"}
    axes = ("time", "lat", "lon")
    density = np.where(np.arange(16)[:, None] < 3, np.nan, SAMPLES)
    xarray.Dataset(
        {"tracer": (axes, density, {"units": "m-2"}), "u": (axes, SAMPLES, {"units": "m s-1"})},
        {
            "time": ("time", np.arange(0, 8, 2), times),
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": LON,
        },
    ).to_netcdf("maps.nc")
    options: Any = {"density_key": "tracer", "field_keys": ["u"], "land": "missing"}
    data = DensityMaps("maps.nc", ["maps.nc"], **options, areas="latitude", validation=0.5)
    data.write_step("step.nc")
    step = opened("step.nc", decode_times=False)
    assert list(step["channel"].values) == ["tracer", "cell_area", "u"]
    np.testing.assert_array_equal(step["data"][0], np.nan_to_num(density[2]))
    np.testing.assert_allclose(step["data"][2, 5], (SAMPLES[2, 5] + SAMPLES[3, 5]) / 2)
    assert (step["time"].item(), step["data"].attrs["forecast_step"]) == (4, 2)
    nms.save(nms.UNet(3, 1, [4], norm=None), "model.nx")
    predict_file("model.nx", "step.nc", "next.nc")
    found = opened("next.nc", decode_times=False)
    assert (found["time"].item(), found["time"].attrs) == (6, times)
    assert found["data"].attrs["units"] == "m-2"
    for name in ("lat", "lon"):
        xarray.testing.assert_identical(found[name].variable, step[name].variable)
    assert "channel" not in found.coords
    data.write_step("step.nc", 0, overwrite=True)
    assert opened("step.nc", decode_times=False)["time"].item() == 0
    data.write_step("step.npy", 1)
    assert np.load("step.npy").shape == (3, 16, 12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"first": -1}, "first must be a time before the last of 4, got -1"),
        ({"first": -5}, "first must be a time before the last of 4, got -5"),
        ({"first": 3}, "first must be a time before the last of 4, got 3"),
        ({"sample": 1}, "sample must be below 1, got 1"),
        ({"path": "model.nx"}, "path must end in one of"),
        ({"path": "sea.nc"}, "path must be free, or overwrite=True, got sea.nc"),
    ],
)
def test_a_step_that_is_not_there_is_refused(given: dict[str, Any], words: str):
    np.save("density.npy", SAMPLES)
    data = DensityMaps("density.npy", validation=0.5)
    with pytest.raises(ValueError, match=words):
        data.write_step(**{"path": "step.npy", **given})


def test_a_forecast_of_states_has_the_times_after_its_start():
    nms.save(TimeStepper(MLP(3, 3, [8]), 1), "stepper.nx")
    states = np.random.default_rng(0).random((2, 5, 3))
    times = {"units": "s"}
    data = xarray.Dataset(
        {"state": (("run", "time", "part"), states, {"units": "m"})},
        {"run": [7, 8], "time": ("time", 0.5 * np.arange(5), times), "part": ["x", "y", "z"]},
    )
    data.to_netcdf("states.nc")
    forecast_file("stepper.nx", "states.nc", "out.nc", 3, row=-2)
    found = opened("out.nc", decode_times=False)
    assert found["data"].dims == ("run", "time", "part")
    np.testing.assert_allclose(found["time"], [2, 2.5, 3])
    assert found["data"].attrs == {"units": "m"}
    assert list(found["part"].values) == ["x", "y", "z"]
    assert list(found["run"].values) == [7, 8]
    forecast_file("stepper.nx", "states.nc", "slow.nc", 3, row=0, time_step=2)
    np.testing.assert_allclose(opened("slow.nc", decode_times=False)["time"], [2, 4, 6])
    data.isel(time=1).to_netcdf("one.nc")
    forecast_file("stepper.nx", "one.nc", "next.nc", 3, time_step=1)
    found = opened("next.nc", decode_times=False)
    assert (found["data"].dims, found["time"].values.tolist()) == (
        ("run", "time", "part"),
        [1.5, 2.5, 3.5],
    )
    forecast_file("stepper.nx", "one.nc", "unknown.nc", 3)
    assert "time" not in opened("unknown.nc").variables
    data.isel(time=[0, 1, 3]).to_netcdf("uneven.nc")
    forecast_file("stepper.nx", "uneven.nc", "uneven_next.nc", 3, row=0)
    assert "time" not in opened("uneven_next.nc").variables
    with pytest.raises(ValueError, match=r"time_step needs a target that ends in .nc, got a.npy"):
        forecast_file("stepper.nx", "one.nc", "a.npy", 3, time_step=1)


def test_coordinates_are_written_as_they_are_read():
    given = open_array("sea.nc", "sst").coordinates
    axes = ("time", "lat", "lon")
    array = create_array("a.nc", SAMPLES.shape, axes=axes, coordinates=given, attributes={"n": 3})
    array[...] = SAMPLES
    array.close()
    again = open_array("a.nc")
    assert again.coordinates.keys() == given.keys()
    assert again.attributes["n"] == 3
    xarray.Dataset(coords=given)  # takes them


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((("lat",), LAT), r"must be tuples \(axes, values, attributes\), got tuple for 'lat'"),
        ((("lat",), LAT[:3], {}), r"'lat' must have 16 values along 'lat', got 3"),
        (
            (("lat", "lon"), LAT, {}),
            r"'lat' must have an axis for each of .*values of shape \(16,\)",
        ),
    ],
)
def test_coordinates_that_do_not_fit_are_refused(given: Any, words: str):
    with pytest.raises(ValueError, match=words):
        create_array("a.nc", (16, 12), axes=("lat", "lon"), coordinates={"lat": given})
    assert not Path("a.nc").exists()
