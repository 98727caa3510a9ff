"""Data-flow drawings are valid and accessible, and their boxes do not overlap."""

from itertools import combinations
from xml.etree import ElementTree

import pytest

from docs_tools.drawings import Box, flow

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*args, **kwargs) -> ElementTree.Element:
    text = flow(*args, **kwargs)
    assert "\n" not in text  # a blank line would end the HTML block of a page
    return ElementTree.fromstring(text)[0]


def u_shape(title: str = "A small U-Net") -> ElementTree.Element:
    columns = [
        [Box("x1", "64\nfull size")],
        [None, Box("x2", "128", size=0.5)],
        [None, None, Box("x3", "256", size=0.25, filled=True)],
        [None, Box("y2", "128", size=0.5)],
        [Box("y1", "64")],
    ]
    arrows = [("x1", "x2"), ("x2", "x3"), ("x3", "y2"), ("y2", "y1"), ("x1", "y1", "skip")]
    return drawn(columns, arrows, title=title)


def numbers(shape: ElementTree.Element, *names: str) -> list[float]:
    return [float(shape.attrib[name]) for name in names]


def test_a_drawing_has_a_title_for_screen_readers():
    image = u_shape("Maps <of> a & b")
    assert image.attrib["role"] == "img"
    assert image.find(f"{SVG}title").text == "Maps <of> a & b"


def test_boxes_are_as_large_as_their_resolution_and_keep_apart():
    boxes = [numbers(rect, "x", "y", "width", "height") for rect in u_shape().iter(f"{SVG}rect")]
    assert [width for _, _, width, _ in boxes] == [56, 28, 14, 28, 56]
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in combinations(boxes, 2):
        assert x0 + w0 < x1 or x1 + w1 < x0 or y0 + h0 < y1 or y1 + h1 < y0


def test_everything_lies_inside_the_image():
    image = u_shape()
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    for rect in image.iter(f"{SVG}rect"):
        x, y, w, h = numbers(rect, "x", "y", "width", "height")
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    for text in image.iter(f"{SVG}text"):
        x, y = numbers(text, "x", "y")
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_five_columns_fit_a_telephone():
    assert float(u_shape().attrib["viewBox"].split()[2]) <= 390


def test_an_arrow_leads_from_one_box_to_the_next():
    columns = [[Box("a", "top"), Box("b")], [Box("c")]]
    image = drawn(columns, [("a", "b"), ("b", "a"), ("a", "c", "pool"), ("c", "a")], title="t")
    down, up, right, left = [
        numbers(line, "x1", "y1", "x2", "y2") for line in image.iter(f"{SVG}line")
    ]
    assert down[0] == down[2]
    assert down[1] < down[3]
    assert up[1] > up[3]
    assert right[0] < right[2]
    assert right[1] == right[3]
    assert left[0] > left[2]
    assert "pool" in [text.text for text in image.iter(f"{SVG}text")]


def test_an_arrow_to_an_unknown_box_raises():
    with pytest.raises(ValueError, match=r"one of the boxes \['a'\], got 'b'"):
        flow([[Box("a")]], [("a", "b")], title="t")
