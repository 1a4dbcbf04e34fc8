"""Where the instrument is thought to look, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from tem_live.drivers.protocols import ColumnParts
from tem_live.errors import DeviceError
from tem_live.fluence_map import Place
from tem_live.state import FrameInfo
from tem_live.whereabouts import STILL_NM, Field, Whereabouts


class Column:
    """A stage, a beam and an image shift and a lit area that say what they are told to."""

    def __init__(self) -> None:
        self.stage_position_um = (0.0, 0.0)
        self.beam_shift_nm = (0.0, 0.0)
        self.image_shift_nm = (0.0, 0.0)
        self.beam_area_nm2 = 3.14159265 * 50.0**2
        self.broken = False

    def __getattribute__(self, name: str) -> Any:
        if name == "stage_position_um" and object.__getattribute__(self, "broken"):
            raise DeviceError("the stage does not answer")
        return object.__getattribute__(self, name)


class Rig:
    def __init__(self, axes: Any = ((1.0, 0.0), (0.0, 1.0)), column: Any = None) -> None:
        self.column = column or Column()
        self.field: Field | None = Field(64.0, 64.0)
        self.noted: list[tuple[Place, int | None]] = []
        self.warned: list[str] = []
        self.next_frame = 0
        self.made = Whereabouts(
            ColumnParts(
                stage=self.column,
                beam_shift=self.column,
                beam_area=self.column,
                image_shift=self.column,
            ),
            axes,
            lambda: self.field,
            lambda: self.next_frame,
            lambda: False,
            lambda place, since: self.noted.append((place, since)),
            self.warned.append,
        )

    def frame(self, drift_px: tuple[float, float] | None, size_nm: float = 1.0) -> None:
        self.made.follow(
            FrameInfo(self.next_frame, 0, 0.0, 0.1, 1, size_nm, 1.0, drift_px=drift_px)
        )
        self.next_frame += 1

    @property
    def at(self) -> tuple[float, float]:
        place = self.made.place
        assert place is not None
        return place.x_nm, place.y_nm


@pytest.fixture
def rig() -> Any:
    made = Rig()
    yield made
    made.made.close()


def test_the_field_is_where_the_specimen_came_from(rig: Rig):
    rig.column.stage_position_um = (0.1, -0.02)
    rig.made.look()
    assert rig.at == (-100.0, 20.0)
    place, since = rig.noted[-1]
    assert since is None
    assert place.beam == pytest.approx((-100.0, 20.0, 50.0))


def test_the_beam_is_shifted_and_the_field_is_not(rig: Rig):
    rig.column.beam_shift_nm = (30.0, 5.0)
    rig.made.look()
    assert rig.at == (0.0, 0.0)
    assert rig.noted[-1][0].beam == pytest.approx((30.0, 5.0, 50.0))


def test_the_image_is_shifted_and_the_beam_is_not(rig: Rig):
    rig.column.stage_position_um = (0.1, 0.0)
    rig.column.image_shift_nm = (30.0, 5.0)
    rig.made.look()
    assert rig.at == (-70.0, 5.0)
    assert rig.noted[-1][0].beam == pytest.approx((-100.0, 0.0, 50.0))
    elsewhere = rig.made.place_at((0.0, 0.0))
    assert elsewhere is not None
    assert (elsewhere.x_nm, elsewhere.y_nm) == (-100.0, 0.0)
    assert elsewhere.beam == rig.noted[-1][0].beam


def test_the_way_of_the_image_shift_is_not_counted_as_drift_too(rig: Rig):
    rig.made.look()
    rig.frame((0.0, 0.0))
    rig.frame((0.0, 4.0))
    rig.made.look()
    rig.column.image_shift_nm = (20.0, 0.0)
    rig.frame((0.0, -16.0))
    rig.made.look()
    assert rig.at == pytest.approx((16.0, 0.0))
    rig.frame((0.0, -17.0))
    rig.frame((0.0, -18.0))
    assert rig.at == pytest.approx((17.0, 0.0))


def test_a_stage_of_other_axes():
    turned = Rig(axes=((0.0, -1.0), (1.0, 0.0)))
    turned.column.stage_position_um = (0.1, 0.2)
    turned.made.look()
    # Stage x moves the image down, y to the left.
    assert turned.at == pytest.approx((200.0, -100.0))
    turned.made.close()


def test_drift_is_added_up_and_told_from_its_frame_on(rig: Rig):
    rig.made.look()
    rig.frame((0.0, 0.0))
    rig.frame((2.0, -3.0), size_nm=1.0)
    assert rig.at == pytest.approx((3.0, -2.0))
    assert rig.noted[-1][1] == 1
    rig.frame(None)
    rig.frame(None)
    rig.frame((4.0, -3.0))
    assert rig.at == pytest.approx((3.0, -4.0))
    # Half of the frames that nothing is known of are given to it.
    assert rig.noted[-1][1] == 3


def test_less_than_a_quarter_of_a_cell_is_not_noted(rig: Rig):
    rig.made.look()
    rig.frame((0.0, 0.0))
    rig.frame((0.1, 0.1))
    assert len(rig.noted) == 1
    rig.frame((0.3, 0.1))
    assert len(rig.noted) == 2


def test_the_way_of_the_stage_is_not_counted_as_drift_too(rig: Rig):
    rig.made.look()
    rig.frame((0.0, 0.0))
    rig.frame((0.0, 4.0))
    rig.made.look()
    rig.column.stage_position_um = (0.05, 0.0)
    # Seen in the frames before the stage was asked, and after.
    rig.frame((0.0, 24.0))
    rig.made.look()
    assert rig.at == pytest.approx((-54.0, 0.0))
    rig.frame((0.0, 54.0))
    assert rig.at == pytest.approx((-54.0, 0.0))
    rig.frame((0.0, 55.0))
    assert rig.at == pytest.approx((-55.0, 0.0))


def test_a_stage_that_trembles_stands_still(rig: Rig):
    rig.made.look()
    rig.column.stage_position_um = (0.8e-3 * STILL_NM, 0.0)
    rig.made.look()
    assert rig.at == (0.0, 0.0)


def test_drift_does_not_go_on_from_another_pixel_size_or_a_new_beginning(rig: Rig):
    rig.made.look()
    rig.frame((0.0, 0.0))
    rig.frame((0.0, 4.0))
    rig.frame((0.0, 30.0), size_nm=2.0)
    assert rig.at == pytest.approx((-4.0, 0.0))
    rig.frame((0.0, 31.0), size_nm=2.0)
    assert rig.at == pytest.approx((-6.0, 0.0))
    rig.frame((0.0, 0.0), size_nm=2.0)
    rig.frame((0.0, 1.0), size_nm=2.0)
    assert rig.at == pytest.approx((-8.0, 0.0))


def test_without_a_pixel_size_there_is_no_place(rig: Rig):
    rig.field = None
    rig.made.look()
    assert rig.made.place is None
    assert rig.noted == []


def test_a_column_that_fails_is_told_once_and_the_place_stays(rig: Rig):
    rig.column.stage_position_um = (0.1, 0.0)
    rig.made.look()
    rig.column.broken = True
    for _ in range(3):
        rig.made.look()
    assert rig.at == (-100.0, 0.0)
    assert len(rig.noted) == 1
    assert rig.warned == ["the fluence map stays where it was: the stage does not answer"]


def test_a_column_that_tells_nothing():
    made = Whereabouts(
        ColumnParts(),
        ((1.0, 0.0), (0.0, 1.0)),
        lambda: Field(64.0, 32.0, 10.0, 0.0),
        lambda: 0,
        lambda: True,
        lambda place, since: None,
        lambda text: None,
    )
    made.look()
    assert made.place == Place(10.0, 0.0, 64.0, 32.0, None)
    made.close()
