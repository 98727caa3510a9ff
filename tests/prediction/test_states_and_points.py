"""Forecasts of states and values at points, from files to files."""

from pathlib import Path

import numpy as np
import pytest
import torch

import neurenix_ms as nms
from neurenix_ms.command import main
from neurenix_ms.implicit import Normalizer
from neurenix_ms.implicit.tables import read_columns, write_columns
from neurenix_ms.layers.mlp import MLP
from neurenix_ms.msnet import MSNet
from neurenix_ms.prediction import evaluate_file, forecast_file, predict_file
from neurenix_ms.timestepping import StandardizedNetwork, TimeStepper


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stepper() -> nms.HierarchicalTimeStepper:
    model = nms.HierarchicalTimeStepper([TimeStepper(MLP(3, 3, [8]), s) for s in (1, 4)])
    nms.save(model, "model.nx")
    return model


@pytest.fixture
def field() -> Normalizer:
    model = Normalizer(nms.NIF(1, 2, 2, shape_width=8))
    model.fit(torch.rand(9, 1), torch.rand(9, 2), 5 + torch.rand(9, 2))
    nms.save(model, "model.nx")
    return model


@pytest.mark.parametrize("name", ["out.npy", "out.zarr", "out.h5"])
def test_a_forecast_starts_at_a_row(name: str, stepper: nms.HierarchicalTimeStepper, capsys):
    states = np.random.default_rng(0).random((5, 9, 3))
    np.save("states.npy", states)
    words = ["predict", "model.nx", "states.npy", name, "--steps", "10", "--row", "-1"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{name}: shape (5, 10, 3), 10 steps\n"
    with torch.no_grad():
        wanted = stepper.forecast(torch.from_numpy(states[:, -1]).float(), 10)
    np.testing.assert_allclose(nms.datasets.open_array(name)[...], wanted.numpy(), rtol=1e-5)
    assert main(words) == 1
    assert f"target must be free, got {name}, which exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert {path.name for path in Path().iterdir()} == {"model.nx", "states.npy", name}


def test_states_and_model_are_not_overwritten(stepper: nms.HierarchicalTimeStepper):
    np.save("states.npy", np.ones((2, 3)))
    before = Path("model.nx").read_bytes()
    for target in ("states.npy", "model.nx"):
        with pytest.raises(ValueError, match="target must not hold the model or the source"):
            forecast_file("model.nx", "states.npy", target, 4, overwrite=True)
    with pytest.raises(ValueError, match=r"path must have an ending of one of .* got out.npz"):
        forecast_file("model.nx", "states.npy", "out.npz", 4)
    assert np.array_equal(np.load("states.npy"), np.ones((2, 3)))
    assert Path("model.nx").read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"model.nx", "states.npy"}


def test_states_are_taken_as_they_are(stepper: nms.HierarchicalTimeStepper):
    np.save("states.npy", np.ones((2, 3)))
    assert forecast_file("model.nx", "states.npy", "out.npy", 4) == (2, 4, 3)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3,), {}, r"must have the axes \(states, features\), got shape \(3,\)"),
        ((2, 3), {"row": 0}, r"axes \(trajectories, time, features\), got shape \(2, 3\)"),
        ((2, 4, 3), {"row": 4}, r"row must be one of 4 time steps, got 4"),
        ((2, 3), {"num_steps": 0}, r"num_steps must be at least 1, got 0"),
        ((2, 3), {"target": "no/out.npy"}, r"target must be in a folder that exists, got no/out"),
    ],
)
def test_states_that_do_not_fit_are_refused(shape, options, words, stepper):
    np.save("states.npy", np.ones(shape))
    given = {"model": "model.nx", "source": "states.npy", "target": "out.npy", "num_steps": 3}
    with pytest.raises(ValueError, match=words):
        forecast_file(**given | options)
    assert not Path("out.npy").exists()


def test_states_of_another_length_are_refused():
    network = StandardizedNetwork(MLP(3, 3, [8]), [0.0] * 3, [1.0] * 3, [1.0] * 3)
    nms.save(TimeStepper(network, 1), "model.nx")
    np.save("states.npy", np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"states that the model takes, got \(2, 4\): The size of"):
        forecast_file("model.nx", "states.npy", "out.npy", 3)


def test_a_state_that_is_not_a_number_is_refused(stepper: nms.HierarchicalTimeStepper):
    np.save("states.npy", np.array([[1.0, 2, 3], [1, np.nan, 3]]))
    with pytest.raises(ValueError, match=r"got 1 missing values of 6"):
        forecast_file("model.nx", "states.npy", "out.npy", 3)


def test_a_field_is_evaluated_at_the_points_of_a_table(field: Normalizer, capsys):
    rows = {name: np.random.default_rng(i).random(7) for i, name in enumerate("txy")}
    write_columns(Path("points.csv"), rows)
    words = "predict model.nx points.csv out.csv --coordinates x,y --values u,v --parameters t"
    assert main(words.split()) == 0
    assert capsys.readouterr().out == "out.csv: u, v at 7 points\n"
    found = read_columns(Path("out.csv"), ["t", "x", "y", "u", "v"])
    p, x = (
        torch.from_numpy(rows["t"])[:, None],
        torch.from_numpy(np.stack([rows["x"], rows["y"]], 1)),
    )
    with torch.no_grad():
        wanted = field(p.float(), x.float()).numpy()
    np.testing.assert_allclose(np.stack([found["u"], found["v"]], 1), wanted, rtol=1e-5)
    np.testing.assert_allclose(found["x"], rows["x"])
    assert main(words.split()) == 1
    assert "target must be free, got out.csv" in capsys.readouterr().err


def test_points_are_not_overwritten(field: Normalizer):
    Path("points.csv").write_text("x,y,name\n0,0,left\n")
    with pytest.raises(ValueError, match="target must not hold the model or the source"):
        evaluate_file(
            "model.nx",
            "points.csv",
            "points.csv",
            coordinates=["x", "y"],
            values=["u", "v"],
            parameter_values=[0.5],
            overwrite=True,
        )
    assert Path("points.csv").read_text() == "x,y,name\n0,0,left\n"


def test_a_field_is_evaluated_on_a_mesh(field: Normalizer):
    meshio = pytest.importorskip("meshio")
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    meshio.Mesh(points, [("triangle", np.array([[0, 1, 2]]))]).write("a.vtu")
    words = "predict model.nx a.vtu b.vtu --coordinates x,y --values u,v --parameter-values 0.5"
    assert main(words.split()) == 0
    with torch.no_grad():
        wanted = field(torch.full((3, 1), 0.5), torch.from_numpy(points[:, :2]).float())
    found = read_columns(Path("b.vtu"), ["u", "v"])
    np.testing.assert_allclose(found["v"], wanted[:, 1].numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinates": ["x"]}, r"coordinates must be 2 for this field, got \['x'\]"),
        ({"values": ["u"]}, r"values must be 2 for this field, got \['u'\]"),
        (
            {"parameter_values": [1.0, 2.0]},
            r"parameters must be 1 for this field, got \[1.0, 2.0\]",
        ),
        ({"coordinates": ["x", "z"]}, r"must have the columns \['x', 'z'\], got no \['z'\]"),
        ({"coordinates": ["x", "w"]}, r"must have a number everywhere, got none in row 1 of w"),
    ],
)
def test_points_that_do_not_fit_are_refused(options: dict, words: str, field: Normalizer):
    rows = {"x": [1.0, 2.0], "y": [1.0, 2.0], "w": [0.0, np.nan]}
    write_columns(Path("a.csv"), {name: np.array(values) for name, values in rows.items()})
    given = {"coordinates": ["x", "y"], "values": ["u", "v"], **options}
    with pytest.raises(ValueError, match=words):
        evaluate_file("model.nx", "a.csv", "out.csv", **given)
    assert not Path("out.csv").exists()


def test_a_network_of_another_kind_is_named(field: Normalizer, capsys):
    np.save("a.npy", np.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=r"a Normalizer takes points: call evaluate_file \(--coord"
    ):
        predict_file("model.nx", "a.npy", "b.npy")
    with pytest.raises(ValueError, match=r"model must make forecasts, got a Normalizer"):
        forecast_file("model.nx", "a.npy", "b.npy", 3)
    nms.save(TimeStepper(MLP(3, 3, [8]), 1), "stepper.nx")
    with pytest.raises(
        ValueError, match=r"a TimeStepper forecasts states: call forecast_file \(--s"
    ):
        predict_file("stepper.nx", "a.npy", "b.npy")
    with pytest.raises(ValueError, match=r"model must be an implicit field, got a TimeStepper"):
        evaluate_file("stepper.nx", "a.csv", "b.csv", coordinates=["x"], values=["u"])
    assert main(["predict", "model.nx", "a.csv", "b.csv", "--values", "u"]) == 1
    assert "points need --coordinates and --values, got one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "model.nx", "a.csv", "b.csv", "--parameter-values", "x"])
    assert "must be numbers separated by commas, got 'x'" in capsys.readouterr().err


def test_the_finest_output_of_an_msnet_is_written_in_tiles():
    model = MSNet(num_scales=2, num_features=2, num_filters=2, spatial_dims=2).eval()
    nms.save(model, "model.nx")
    image = (np.random.default_rng(0).random((2, 32, 24)) > 0.3).astype("float32")
    np.save("image.npy", image)
    made = predict_file("model.nx", "image.npy", "out.npy", tile_size=16)
    assert made.num_tiles > 1
    with torch.no_grad():
        wanted = model(torch.from_numpy(image)[None])[-1]
    np.testing.assert_allclose(np.load("out.npy"), wanted.numpy(), atol=1e-5)
    np.save("image.npy", image[:1])
    with pytest.raises(
        ValueError, match=r"must fit a MSNet of 2 channels, got shape \(1, 1, 32, 24"
    ):
        predict_file("model.nx", "image.npy", "other.npy")
