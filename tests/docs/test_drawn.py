"""Every public module has a correct and readable drawing without crossings."""

import importlib
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from docs_tools.charts import Arrow, Node, between, chart
from docs_tools.drawn import SKETCHES, drawing
from docs_tools.drawn.sketch import Sketch, data, draw, step
from docs_tools.source import documented
from neurenix_ms import UNet

SVG = "{http://www.w3.org/2000/svg}"
TELEPHONE = 358  # pixels of a page's text on a screen of 390
Box = tuple[float, float, float, float]
EVERY = pytest.mark.parametrize("name", SKETCHES)


def image_of(name: str) -> ElementTree.Element:
    text = drawing(name).replace("data-search-exclude", "").replace("<br>", "<br/>")
    assert "\n" not in text  # a blank line would end the HTML block of a page
    image = ElementTree.fromstring(text).find(f".//{SVG}svg")
    assert image is not None
    return image


def boxes_of(image: ElementTree.Element) -> list[Box]:
    names = ("x", "y", "width", "height")
    sizes = [[float(rect.attrib[name]) for name in names] for rect in image.iter(f"{SVG}rect")]
    return [(x, y, x + w, y + h) for x, y, w, h in sizes]


def width_of(text: ElementTree.Element) -> float:
    wide = 0.62 if "font-family" in text.attrib else 0.5  # of the font's size, as browsers have it
    return wide * float(text.attrib["font-size"]) * len(text.text or "")


def lines_of(image: ElementTree.Element) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    paths = [line.attrib["points"].split() for line in image.iter(f"{SVG}polyline")]
    points = [[tuple(map(float, point.split(","))) for point in path] for path in paths]
    return [pair for path in points for pair in pairwise(path)]


def crosses(line: tuple, box: Box) -> bool:
    """Return whether a line crosses the inside of a box."""
    (x0, y0), (x1, y1) = line
    left, top, right, bottom = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
    steps = (i / 200 for i in range(201))
    points = ((x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in steps)
    return any(left < x < right and top < y < bottom for x, y in points)


def test_every_public_module_is_drawn_and_nothing_else():
    public = set()
    for path in documented():
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        of_config = module == "neurenix_ms.fitting"  # its tasks are those of `training`, by name
        if isinstance(thing, type) and issubclass(thing, nn.Module) and not of_config:
            public.add(name)
    assert public == set(SKETCHES)


@EVERY
def test_a_drawing_builds_the_module_that_it_is_of(name: str):
    build = SKETCHES[name].build
    if name == "SequenceModel":  # what others are made from
        build = build.replace("LSTMForecaster(", "SequenceModel(")
    assert build.startswith(f"{name}(")


@EVERY
def test_a_drawing_has_a_title_and_shapes(name: str):
    image = image_of(name)
    assert image.attrib["role"] == "img"
    assert image.attrib["aria-label"] == image.find(f"{SVG}title").text == SKETCHES[name].about
    assert len(SKETCHES[name].about) > 20
    shown = " ".join(text.text or "" for text in image.iter(f"{SVG}text"))
    assert re.search(r"\dx\d|a number", shown)


@EVERY
def test_a_drawing_fits_a_telephone_and_its_text_fits_its_boxes(name: str):
    image, boxes = image_of(name), boxes_of(image_of(name))
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    assert width <= TELEPHONE
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
    for a, b in combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    for text in image.iter(f"{SVG}text"):
        x, y, half = float(text.attrib["x"]), float(text.attrib["y"]), width_of(text) / 2
        assert any(
            x0 < x - half and x + half < x1 and y0 + 8 < y < y1 - 2 for x0, y0, x1, y1 in boxes
        ), text.text


@EVERY
def test_no_arrow_of_a_drawing_crosses_a_box(name: str):
    image = image_of(name)
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    for line in lines_of(image):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in line)
        assert not [box for box in boxes_of(image) if crosses(line, box)], line


def test_shapes_are_those_of_a_call():
    def sketch(channels: int) -> Sketch:
        rows = [[data("x")], [step("a layer", "model")], [data("y")]]
        return Sketch(
            f"nn.Conv2d(3, {channels}, 3)", rows, "A layer", {"x": "torch.rand(2, 3, 9, 7)"}
        )

    assert "2x3x9x7" in draw(sketch(5))
    assert "2x5x7x5" in draw(sketch(5))
    assert "2x6x7x5" in draw(sketch(6))
    assert 'fill-opacity="0.3"' in draw(sketch(6))  # it has weights


def test_shapes_of_a_drawing_follow_the_module():
    shown = drawing("UNet")
    maps = UNet(3, 1, features=[8, 16])
    y = maps(torch.zeros(2, 3, 37, 53))
    for one in [y, *maps.get_encoder_features(), *maps.get_decoder_features()]:
        assert "x".join(map(str, one.shape)) in shown


def test_a_row_leads_to_the_next():
    two, one = [Node("a", "a"), Node("b", "b")], [Node("c", "c"), None]
    ends = [Node("d", "d"), Node("e", "e")]
    assert between([two, one]) == [Arrow("a", "c"), Arrow("b", "c")]
    assert between([two, ends]) == [Arrow("a", "d"), Arrow("b", "e")]


def test_an_arrow_to_an_unknown_box_raises():
    with pytest.raises(ValueError, match=r"one of the boxes \['a'\], got 'b'"):
        chart([[Node("a", "a")]], [Arrow("a", "b")], title="t")
