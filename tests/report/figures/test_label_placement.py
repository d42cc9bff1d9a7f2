from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prunebench_report.figures.label_placement import Place, place

AREA = (0.0, 0.0, 400.0, 300.0)
inside = st.tuples(st.floats(0, 400), st.floats(0, 300))


def overlap(one: Place, other: Place) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@given(st.lists(inside, max_size=25))
def test_labels_stay_inside_and_cover_neither_each_other_nor_a_point(points):
    places = place(points, [60.0] * len(points), 14.0, AREA)
    found = [spot for spot in places if spot]
    for index, spot in enumerate(found):
        assert (
            spot.x >= 0
            and spot.y >= 0
            and spot.x + spot.width <= 400
            and spot.y + spot.height <= 300
        )
        assert not any(overlap(spot, other) for other in found[index + 1 :])
        assert not any(
            spot.x < x < spot.x + spot.width and spot.y < y < spot.y + spot.height
            for x, y in points
        )


def test_a_lonely_point_has_its_label_beside_it():
    (spot,) = place([(200.0, 150.0)], [60.0], 14.0, AREA)
    assert spot is not None
    assert not spot.far


def test_a_label_moves_away_from_a_line_through_its_point():
    (spot,) = place([(200.0, 150.0)], [60.0], 14.0, AREA, lines=[(0, 150, 400, 150)])
    assert spot is not None
    assert spot.y > 150 or spot.y + spot.height < 150
