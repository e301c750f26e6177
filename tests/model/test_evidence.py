"""Evidence must point to the pixels of the source file that support the class."""

import io

import numpy as np
import pytest
from PIL import Image

from model.errors import DatasetError
from model.evidence import HEATMAP_SIDE_PIXELS, against_the_others, find_evidence, heat_of
from model.training.folder import LabelledImages
from tests.trials.shipped_networks import judge, overlap, read_boxes

SIDE, GRID = 100, 10


def scene(top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels with a bright spot, and features that are active at its position."""
    pixels = np.full((SIDE, SIDE, 1), 100, np.uint8)
    pixels[top : top + 10, left : left + 10] = 220
    features = np.zeros((GRID, GRID, 4), np.float32)
    features[top // 10, left // 10, 2] = 5.0
    return pixels, features


CLASS_WEIGHTS = np.array([0, 0, 1, 0], np.float32)


@pytest.mark.parametrize(("top", "left"), [(20, 60), (70, 10), (0, 90)])
def test_heat_peaks_where_the_class_is_active_and_pixels_stand_out(top: int, left: int) -> None:
    heat = heat_of(*scene(top, left), CLASS_WEIGHTS)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert top <= row < top + 10
    assert left <= column < left + 10
    assert heat.max() == pytest.approx(1.0)
    assert heat.min() >= 0


def test_inner_position_outweighs_an_equal_one_at_the_border() -> None:
    border, inside = scene(0, 50), scene(50, 50)
    pixels, features = np.maximum(border[0], inside[0]), border[1] + inside[1]
    heat = heat_of(pixels, features, CLASS_WEIGHTS)
    assert 50 <= np.unravel_index(heat.argmax(), heat.shape)[0] < 60
    assert heat[:10, 50:60].max() > 0, "evidence at the border must still be visible"


def test_box_is_in_pixels_of_the_source() -> None:
    pixels, features = scene(20, 60)
    small = find_evidence(pixels, features, CLASS_WEIGHTS, (SIDE, SIDE)).box
    large = find_evidence(pixels, features, CLASS_WEIGHTS, (8 * SIDE, 3 * SIDE)).box
    assert overlap(small, (60, 20, 70, 30)) > 0.3
    assert large[0] == pytest.approx(8 * small[0], abs=8)
    assert large[3] == pytest.approx(3 * small[3], abs=3)


@pytest.mark.parametrize(
    ("spot", "source", "frame", "expected"),
    [
        ((20, 60), (200, 100), (100, 100), (110, 20, 120, 30)),
        ((50, 60), (400, 200), (400, 400), (240, 100, 280, 140)),
    ],
    ids=["cropped", "padded"],
)
def test_box_of_a_cropped_or_padded_image_is_in_pixels_of_the_source(
    spot: tuple[int, int],
    source: tuple[int, int],
    frame: tuple[float, float],
    expected: tuple[int, int, int, int],
) -> None:
    evidence = find_evidence(*scene(*spot), CLASS_WEIGHTS, source, frame)
    assert Image.open(io.BytesIO(evidence.heatmap_png)).size == (96, 48)
    assert overlap(evidence.box, expected) > 0.3


@pytest.mark.parametrize("size", [(SIDE, SIDE), (1600, 256), (7, 9000), (1, 1)])
def test_heatmap_is_a_grey_png_of_the_sources_proportions(size: tuple[int, int]) -> None:
    evidence = find_evidence(*scene(20, 60), CLASS_WEIGHTS, size)
    with Image.open(io.BytesIO(evidence.heatmap_png)) as heatmap:
        assert (heatmap.format, heatmap.mode) == ("PNG", "L")
        assert max(heatmap.size) == HEATMAP_SIDE_PIXELS
        assert np.asarray(heatmap).max() == 255
    x0, y0, x1, y1 = evidence.box
    assert 0 <= x0 < x1 <= size[0]
    assert 0 <= y0 < y1 <= size[1]


@pytest.mark.parametrize("weights", [-CLASS_WEIGHTS, 0 * CLASS_WEIGHTS])
def test_without_evidence_the_box_is_the_image(weights: np.ndarray) -> None:
    evidence = find_evidence(*scene(20, 60), weights, (SIDE, SIDE))
    assert evidence.box == (0, 0, SIDE, SIDE)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_without_contrast_the_box_is_the_image(level: int) -> None:
    pixels = np.full((SIDE, SIDE, 1), level, np.uint8)
    evidence = find_evidence(pixels, np.ones((GRID, GRID, 4), np.float32), CLASS_WEIGHTS, (SIDE, SIDE))
    assert evidence.box == (0, 0, SIDE, SIDE)


def test_evidence_common_to_all_classes_is_removed() -> None:
    weights = np.array([[1.0, 1.0], [2.0, 0.0]], np.float32)
    assert against_the_others(weights).tolist() == [[0, 0], [1, -1]]


class TestLocalisation:
    def test_hits_and_misses_are_counted(self) -> None:
        scenes = [scene(20, 60), scene(70, 10), scene(40, 40)]
        data = LabelledImages(np.stack([pixels for pixels, _ in scenes]), np.zeros(3, np.int64), ())
        boxes = [[(60, 20, 70, 30)], [(60, 20, 70, 30)], []]
        found = judge(data, np.stack([features for _, features in scenes]), CLASS_WEIGHTS[:, None], boxes)
        assert found is not None
        assert (found.images, found.pointing_accuracy) == (2, 0.5)
        assert judge(data, np.stack([f for _, f in scenes]), CLASS_WEIGHTS[:, None], [[], [], []]) is None

    def test_overlap_is_intersection_over_union(self) -> None:
        assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
        assert overlap((0, 0, 10, 10), (10, 10, 20, 20)) == 0

    def test_label_is_matched_by_its_beginning(self, tmp_path) -> None:  # noqa: ANN001
        (tmp_path / "boxes.csv").write_text(
            "path,label,xmin,ymin,xmax,ymax\na.png,pitted_surface,1,2,3,4\na.png,unknown,1,2,3,4\n"
        )
        assert read_boxes(tmp_path, ("Patches", "Pitted")) == {"a.png": [(1, (1, 2, 3, 4))]}
        assert read_boxes(tmp_path / "none", ("Pitted",)) == {}

    def test_longest_class_name_wins(self, tmp_path) -> None:  # noqa: ANN001
        (tmp_path / "boxes.csv").write_text("path,label,xmin,ymin,xmax,ymax\na.png,patches,1,2,3,4\n")
        assert read_boxes(tmp_path, ("Patch", "Patches")) == {"a.png": [(1, (1, 2, 3, 4))]}

    @pytest.mark.parametrize("cells", ["1,2,3", "1,2,x,4", "3,2,1,4"])
    def test_invalid_box_is_reported_with_its_line(self, tmp_path, cells: str) -> None:  # noqa: ANN001
        (tmp_path / "boxes.csv").write_text(f"path,label,xmin,ymin,xmax,ymax\na.png,pitted,{cells}\n")
        with pytest.raises(DatasetError, match="line 2"):
            read_boxes(tmp_path, ("Pitted",))

    def test_boxes_without_their_columns_are_refused(self, tmp_path) -> None:  # noqa: ANN001
        (tmp_path / "boxes.csv").write_text("path,label\n")
        with pytest.raises(DatasetError, match="columns"):
            read_boxes(tmp_path, ("Pitted",))
