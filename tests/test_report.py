"""report.html: it parses, loads nothing, says what was measured, and survives hostile text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mrcnn_scratch import ShapesDataset
from mrcnn_scratch.report import ap_panels, difference, duration, points, write_report
from mrcnn_scratch.visualize import ap_against_iou, compare_ops, truth_and_detections

VOID = {"meta", "img", "link", "br", "hr", "input"}


def scores(ap, ap50, ap75):
    return {"AP": ap, "AP50": ap50, "AP75": ap75, "AP_by_iou": [ap] * 10}


def metrics():
    return {
        "box": scores(0.5123, 0.81, 0.5555),
        "mask": scores(0.4512, 0.7788, 0.5),
        "keypoints": scores(0.3, 0.6, -1),
        "roi_pool": {
            "box": scores(0.5, 0.82, 0.5),
            "mask": scores(0.4, 0.76, 0.4111),
            "keypoints": scores(0.31, 0.6, 0.2),
        },
        "seconds": {"data": 3.21, "train_roi_align": 61.0, "train_roi_pool": 59.5, "total": 150.4},
        "command": "mrcnn demo --seed 7",
        "seed": 7,
        "versions": {"torch": "2.14.1", "numpy": "2.4.6"},
    }


def drawing(colour="red"):
    figure = Figure(figsize=(4, 2))
    figure.add_subplot().plot([0, 1], color=colour)
    return figure


def photo():
    figure = Figure(figsize=(4, 4))
    figure.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((900, 900, 3)))
    return figure


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(tmp_path, *arguments, **options):
    path = tmp_path / "out" / "report.html"
    write_report(path, *arguments, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def report(tmp_path):
    figures = [("Losses", "Faint as logged.", drawing()), ("Detections", "", photo())]
    return written(tmp_path, metrics(), figures, date="2025-01-31")


def test_numbers_are_those_measured(report):
    _, page = report
    table = {row[0]: row[1:] for row in page.rows if len(row) == 4}
    assert table == {
        "": ["RoIAlign", "RoIPool", "difference"],
        "box AP": ["51.2", "50.0", "+1.2"],
        "box AP50": ["81.0", "82.0", "\N{MINUS SIGN}1.0"],
        "box AP75": ["55.5", "50.0", "+5.5"],
        "mask AP": ["45.1", "40.0", "+5.1"],
        "mask AP50": ["77.9", "76.0", "+1.9"],
        "mask AP75": ["50.0", "41.1", "+8.9"],
        "keypoints AP": ["30.0", "31.0", "\N{MINUS SIGN}1.0"],
        "keypoints AP50": ["60.0", "60.0", "0.0"],
        "keypoints AP75": ["n/a", "20.0", "n/a"],
    }
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts["train with RoIAlign"] == "61.0" and facts["total"] == "150.4" and facts["torch"] == "2.14.1"


def test_headline_has_command_date_seed_and_time(report):
    text = " ".join("".join(report[1].text).split())
    for part in ("mrcnn demo --seed 7", "2025-01-31", "seed 7", "2 min 30 s in all", "mask AP 45.1"):
        assert part in text, part


def test_page_loads_nothing(report):
    text, page = report
    assert not re.search(r"https?://|url\(|@import|javascript:|//[\w.]+/", re.sub(r"base64,[^\"]*", "", text))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))


def test_page_is_for_phones_and_for_dark_rooms(report):
    text, page = report
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text and page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"} and text.startswith("<!doctype html>")


def test_every_figure_is_there_with_a_text_and_in_the_smaller_format(report):
    _, page = report
    images = page.all("img")
    assert [image["alt"] for image in images] == ["Losses: Faint as logged.", "Detections"]
    assert [image["src"][:16] for image in images] == ["data:image/png;b", "data:image/jpeg;"]
    for image, ratio in zip(images, (2, 1), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))
            assert picture.width == 1500 and picture.width / picture.height == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("pool_mask", "said"),
    [
        (scores(0.40, 0.76, 0.4111), "gap is wider where"),
        (scores(0.40, 0.60, 0.45), "not wider where"),
        (scores(0.46, 0.78, 0.40), "not ahead in this run"),
        (scores(0.4512, 0.7788, 0.5), "not ahead in this run"),
    ],
)
def test_the_text_says_what_the_numbers_say(tmp_path, pool_mask, said):
    values = metrics()
    values["roi_pool"]["mask"] = pool_mask
    _, page = written(tmp_path, values, [])
    text = "".join(page.text)
    assert [phrase in text for phrase in ("gap is wider where", "not wider where", "not ahead")].count(True) == 1
    assert said in text
    assert "one run (seed 7)" in text and "drawn shapes, not photographs" in text


def test_gaps_in_the_text_are_those_of_the_table(report):
    assert "+5.1 points of mask AP here, +1.9 at IoU 0.50 and +8.9 at IoU 0.75" in "".join(report[1].text)


def test_a_run_without_roi_pool_makes_no_comparison(tmp_path):
    values = metrics()
    del values["roi_pool"], values["keypoints"], values["seconds"]
    _, page = written(tmp_path, values, [])
    assert [row for row in page.rows if row[0].endswith(" AP")] == [["box AP", "51.2"], ["mask AP", "45.1"]]
    assert "RoIPool" not in "".join(page.text) and "drawn shapes" in "".join(page.text)


def test_undefined_masks_make_no_claim(tmp_path):
    values = metrics()
    values["mask"]["AP75"] = -1
    _, page = written(tmp_path, values, [])
    assert "gap" not in "".join(page.text) and ["mask AP75", "n/a", "41.1", "n/a"] in page.rows


def test_nothing_measured_is_a_page_still(tmp_path):
    _, page = written(tmp_path, {}, [])
    assert page.all("h1") and page.rows == []


def test_text_is_escaped(tmp_path):
    nasty = '<script>alert("1")</script> & "quotes"'
    values = metrics() | {"command": nasty, "versions": {nasty: nasty}, "seconds": {nasty: 1.0}}
    values["seed"] = nasty
    text, page = written(tmp_path, values, [(nasty, nasty, drawing())], title=nasty, date=nasty)
    assert "<script" not in text and not page.all("script")
    (image,) = page.all("img")
    assert image["alt"] == f"{nasty}: {nasty}" and set(image) == {"src", "width", "height", "alt"}
    assert "".join(page.text).count(nasty) == 11


def test_a_demo_sized_report_is_small(tmp_path):
    """The demo's figures on its own pictures, the truth standing in for detections."""
    data = ShapesDataset("demo", num_images=8, seed=0)
    samples = [data[index] for index in range(len(data))]
    found = [target | {"scores": torch.ones(len(target["labels"]))} for _, target in samples]
    pairs = [(*sample, detection) for sample, detection in zip(samples, found, strict=True)]
    figures = [
        ("Pairs", "", truth_and_detections(pairs, data.class_names, data.skeleton)),
        ("Masks", "", compare_ops(samples[4:8], found[4:8], found[4:8])),
        ("AP", "", ap_against_iou(ap_panels(metrics()))),
    ]
    text, page = written(tmp_path, metrics(), figures)
    assert len(page.all("img")) == 3
    assert len(text) < 2_000_000, "which leaves a third of 3 MB for the poster and the losses"


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("mrcnn_scratch.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, metrics(), [])
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_numbers_in_words():
    assert [points(x) for x in (0.3034, 0.0, 1.0, -1, None)] == ["30.3", "0.0", "100.0", "n/a", "n/a"]
    assert difference(0.303, 0.269) == "+3.4" and difference(0.2, -1) == "n/a"
    assert difference(0.3, 0.30001) == "0.0" and difference(0.1, 0.2) == "\N{MINUS SIGN}10.0"
    assert [duration(x) for x in (7.26, 59.97, 75.4, 3600)] == [
        "7.3 s",
        "1 min 0 s",
        "1 min 15 s",
        "60 min 0 s",
    ]


def test_panels_for_the_ap_figure():
    panels = ap_panels(metrics())
    assert list(panels) == ["box", "mask", "keypoints"]
    assert panels["mask"] == {"RoIAlign": [0.4512] * 10, "RoIPool": [0.4] * 10}
    assert ap_panels({"box": scores(0.1, 0.2, 0.3)}) == {"box": {"RoIAlign": [0.1] * 10}}
