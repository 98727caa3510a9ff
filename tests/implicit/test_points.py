"""Point clouds from tables and meshes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neurenix_ms.implicit import PointCloud
from neurenix_ms.implicit.tables import read_columns, write_columns

NAMES = {"parameters": ["t"], "coordinates": ["x", "y"], "values": ["u"]}
TABLE = {
    "t": [0.0, 0.0, 1.0],
    "x": [0.1, 0.2, 0.3],
    "y": [1.0, 2.0, 3.0],
    "other": [7.0, 8.0, 9.0],
    "u": [5.0, 6.0, 7.0],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(name: str, **columns: list[float]) -> Path:
    made = {key: np.array(values) for key, values in (TABLE | columns).items()}
    write_columns(Path(name), made)
    return Path(name)


def mesh(name: str, height: float = 0.0) -> Path:
    meshio = pytest.importorskip("meshio")
    points = np.array([[0.0, 0, height], [1, 0, height], [0, 1, height]])
    data = {"u": np.array([1.0, 2, 3]), "v": np.arange(9.0).reshape(3, 3)}
    meshio.Mesh(points, [("triangle", np.array([[0, 1, 2]]))], point_data=data).write(name)
    return Path(name)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_has_its_columns_in_any_order(ending: str):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    cloud = PointCloud.read(table(f"a.{ending}"), **NAMES, dtype=torch.float64)
    assert cloud.p.tolist() == [[0], [0], [1]]
    assert cloud.x.tolist() == [[0.1, 1], [0.2, 2], [0.3, 3]]
    assert cloud.u.tolist() == [[5], [6], [7]]
    assert PointCloud.read(f"a.{ending}", **NAMES).u.dtype == torch.float32


def test_a_csv_may_have_quotes_spaces_and_a_byte_order_mark():
    text = '\ufeff"t", x ,"y","a, b",u\r\n0,"1",2,3,4\r\n'
    Path("a.csv").write_bytes(text.encode())
    cloud = PointCloud.read("a.csv", **NAMES)
    assert torch.cat([cloud.p, cloud.x, cloud.u], 1).tolist() == [[0, 1, 2, 4]]


@pytest.mark.parametrize("ending", ["vtk", "vtu"])
def test_meshes_have_a_time_for_each(ending: str):
    files = [mesh(f"{i}.{ending}", i) for i in range(2)]
    cloud = PointCloud.read(
        files, coordinates=["x", "y"], values=["u", "v_2"], parameter_values=[[0.5], [1.5]]
    )
    assert cloud.p[:, 0].tolist() == [0.5] * 3 + [1.5] * 3
    assert cloud.x[3:].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert cloud.u[:3].tolist() == [[1, 2], [2, 5], [3, 8]]
    one = PointCloud.read(files[0], coordinates=["x"], values=["u"])
    assert one.p.tolist() == [[0], [0], [0]]


def test_columns_are_added_to_a_copy_of_a_mesh():
    source = mesh("a.vtu")
    write_columns(Path("b.vtu"), {"x": np.zeros(3), "w": np.array([4.0, 5, 6])}, source)
    found = read_columns(Path("b.vtu"), ["x", "u", "w"])
    assert {k: v.tolist() for k, v in found.items()} == {
        "x": [0, 1, 0],
        "u": [1, 2, 3],
        "w": [4, 5, 6],
    }
    with pytest.raises(
        ValueError, match=r"b.vtu must be a table \(.csv, .parquet\) unless the input"
    ):
        write_columns(Path("b.vtu"), {"w": np.zeros(3)}, table("a.csv"))
    assert sorted(path.name for path in Path().iterdir()) == ["a.csv", "a.vtu", "b.vtu"]


def test_a_part_is_held_out_at_random():
    cloud = PointCloud(torch.zeros(20, 1), torch.arange(20.0)[:, None], torch.ones(20, 1))
    seen, held_out = cloud.split(0.25, seed=1)
    assert (len(seen), len(held_out)) == (15, 5)
    assert sorted([*seen.x.flatten().tolist(), *held_out.x.flatten().tolist()]) == list(range(20))
    assert held_out.x.flatten().tolist() != [15, 16, 17, 18, 19]
    assert torch.equal(cloud.split(0.25, seed=1)[1].x, held_out.x)
    with pytest.raises(ValueError, match=r"part must be below 1"):
        cloud.split(1.0)
    with pytest.raises(ValueError, match=r"a cloud must have two rows to be split, got 1"):
        PointCloud(*[torch.zeros(1, 1)] * 3).split(0.5)


def test_missing_numbers_are_counted_and_can_be_dropped():
    path = table("a.csv", u=[5.0, np.nan, np.inf])
    with pytest.raises(
        ValueError, match=r"got 2 of 3 rows without one, the first is row 1 at \['u'\]; d"
    ):
        PointCloud.read(path, **NAMES)
    assert PointCloud.read(path, **NAMES, drop_missing=True).u.tolist() == [[5]]
    Path("b.csv").write_text("t,x,y,u\n0,1,,3\n0,1,2,3\n")
    with pytest.raises(
        ValueError, match=r"got 1 of 2 rows without one, the first is row 0 at \['y'\]"
    ):
        PointCloud.read("b.csv", **NAMES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "none.csv"}, r"path must be a file that exists, got none.csv"),
        ({"path": "a.txt"}, r"path must have an ending of one of \['.csv', .*got a.txt"),
        ({"path": []}, r"path must be one file or more, got an empty list"),
        (
            {"values": ["w"]},
            r"must have the columns \['t', 'x', 'y', 'w'\], got no \['w'\] in \['t",
        ),
        ({"values": []}, r"values must name a column or more, got none"),
        ({"coordinates": []}, r"coordinates must name a column or more, got none"),
        ({"parameter_values": [[1.0]]}, r"columns or parameter_values, got both: \['t'\]"),
        (
            {"parameters": [], "parameter_values": [[1.0], [2.0]]},
            r"for each of 1 files, got \[\[1.0",
        ),
        ({"parameters": [], "parameter_values": [[]]}, r"as many numbers for each of 1 files, got"),
    ],
)
def test_a_wrong_argument_is_named(options: dict, words: str):
    given = {"path": table("a.csv"), **NAMES, **options}
    with pytest.raises(ValueError, match=words):
        PointCloud.read(given.pop("path"), **given)


def test_corrupted_files_are_said_in_one_line():
    Path("a.csv").write_text("t,x,y,u\n0,1,2,land\n")
    Path("b.parquet").write_bytes(b"PAR1 no")
    Path("c.vtu").write_text("<VTKFile")
    Path("d.csv").write_text("")
    for name, words in {
        "a.csv": r"a.csv must hold numbers in \['t', 'x', 'y', 'u'\], got: could not convert",
        "b.parquet": r"b.parquet must be a Parquet file of numbers, got:",
        "c.vtu": r"c.vtu must be a mesh that meshio reads, got:",
        "d.csv": r"d.csv must have the columns",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            PointCloud.read(name, **NAMES)
        assert "\n" not in str(caught.value)


def test_tensors_must_fit_each_other():
    p, x, u = torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"x must have shape \(N, columns\).* got \(3,\)"):
        PointCloud(p, x[:, 0], u)
    with pytest.raises(ValueError, match=r"p, x and u must have equal lengths, got 3, 2, 3"):
        PointCloud(p, x[:2], u)
    u[1] = torch.nan
    with pytest.raises(
        ValueError, match=r"u must be finite, got 1 numbers that are not, .*row 1, col"
    ):
        PointCloud(p, x, u)


def test_a_missing_reader_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "meshio", None)
    Path("a.vtu").touch()
    with pytest.raises(ImportError, match=r"a.vtu needs meshio: pip install 'neurenix_ms\[io\]'"):
        PointCloud.read("a.vtu", coordinates=["x"], values=["u"])
