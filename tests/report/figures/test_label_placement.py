from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prunebench_report.figures.label_placement import line_block, place_labels

AREA = (220.0, 400.0, 300.0)
WIDTHS = (220.0, 271.5, 333.0, 400.0)
inside = st.tuples(st.floats(0, 1), st.floats(0, 300))


def box(block, width):
    (share, left), (other, right) = block.left, block.right
    return share * width + left, block.top, other * width + right, block.bottom


def overlap(one, other):
    return (
        one[0] < other[2] - 1e-6
        and other[0] < one[2] - 1e-6
        and one[1] < other[3] - 1e-6
        and other[1] < one[3] - 1e-6
    )


@given(st.lists(inside, max_size=20), st.floats(0, 300))
def test_labels_cover_nothing_at_any_width(points, height):
    rule = line_block((0, height), (1, height))
    places = place_labels(points, [60.0] * len(points), 14.0, AREA, taken=[rule])
    found = [one.block for one in places if one]
    for width in WIDTHS:
        boxes = [box(block, width) for block in found]
        for index, one in enumerate(boxes):
            assert one[0] >= -1e-6
            assert one[1] >= 0
            assert one[2] <= width + 1e-6
            assert one[3] <= 300
            assert not any(overlap(one, other) for other in boxes[index + 1 :])
            assert not overlap(one, box(rule, width))
            assert not any(overlap(one, (x * width, y, x * width, y)) for x, y in points)


def test_a_lonely_point_has_its_label_beside_it():
    (label,) = place_labels([(0.5, 150.0)], [60.0], 14.0, AREA)
    assert label.side == 1
    assert not label.far


def test_a_label_moves_away_from_a_line_through_its_point():
    line = line_block((0, 150), (1, 150))
    (label,) = place_labels([(0.5, 150.0)], [60.0], 14.0, AREA, avoided=[line])
    assert label.block.top > 150 or label.block.bottom < 150


def test_without_room_there_is_no_label():
    crowd = [(0.5, float(y)) for y in range(0, 300, 10)] + [
        (share / 20, float(y)) for share in range(20) for y in range(0, 300, 10)
    ]
    assert place_labels(crowd[:1] + crowd, [60.0] * (len(crowd) + 1), 14.0, AREA)[0] is None
