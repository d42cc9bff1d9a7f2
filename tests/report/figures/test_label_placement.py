from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prunebench_report.figures.label_placement import LabelBox, place_labels

AREA = (0.0, 0.0, 400.0, 300.0)
inside = st.tuples(st.floats(0, 400), st.floats(0, 300))


def overlap(one: LabelBox, other: LabelBox) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@given(st.lists(inside, max_size=25))
def test_labels_stay_inside_and_cover_neither_each_other_nor_a_point(points):
    places = place_labels(points, [60.0] * len(points), 14.0, AREA)
    found = [box for box in places if box]
    for index, box in enumerate(found):
        assert box.x >= 0 and box.y >= 0 and box.x + box.width <= 400 and box.y + box.height <= 300
        assert not any(overlap(box, other) for other in found[index + 1 :])
        assert not any(
            box.x < x < box.x + box.width and box.y < y < box.y + box.height for x, y in points
        )


def test_a_lonely_point_has_its_label_beside_it():
    (box,) = place_labels([(200.0, 150.0)], [60.0], 14.0, AREA)
    assert box is not None
    assert not box.far


def test_a_label_moves_away_from_a_line_through_its_point():
    (box,) = place_labels([(200.0, 150.0)], [60.0], 14.0, AREA, lines=[(0, 150, 400, 150)])
    assert box is not None
    assert box.y > 150 or box.y + box.height < 150
