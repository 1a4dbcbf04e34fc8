"""What the camera looks at, and where the beam falls: the stage and the shifts, as they are set.

The frames move when the stage or the image does. That is no drift of the specimen: the frames
before are processed first, and drift and rolling mean begin anew with what is in view then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tem_live.beam import Beam
from tem_live.errors import RefusedError
from tem_live.pipeline import Acquisition, Processor
from tem_live.whereabouts import Whereabouts


class View:
    """See the module's text.

    Parameters
    ----------
    beam : Beam
        Whose column has stage and shifts.
    acquisition : Acquisition
        On whose thread frames move, so that none is taken meanwhile.
    processor : Processor
        What follows the drift.
    whereabouts : Whereabouts
        Told that something has moved.
    arrived : callable
        Called when the stage stands, before the beam is on again.
    moved : callable
        Called when something else of the specimen is in view, before the next frame.
    """

    def __init__(
        self,
        beam: Beam,
        acquisition: Acquisition,
        processor: Processor,
        whereabouts: Whereabouts,
        arrived: Callable[[], None],
        moved: Callable[[], None],
    ) -> None:
        self._beam = beam
        self._acquisition = acquisition
        self._processor = processor
        self._whereabouts = whereabouts
        self._arrived = arrived
        self._moved = moved

    def move_stage(self, x_um: float, y_um: float) -> tuple[float, float]:
        """Move the stage with the beam off; returns where it stands. See `Session.move_stage`."""
        stage = self._beam.parts.stage
        if stage is None:
            raise RefusedError("this instrument's stage cannot be moved from here")
        since = self._beam.emergencies
        # The beam of a run is off already where the acquisition calls.
        lit = self._beam.state.blanked is False and not self._acquisition.running

        def move() -> tuple[float, float]:
            if lit:
                self._beam.set_blanked(True)
            with self._moving():
                try:
                    return stage.move_stage(x_um, y_um)
                except BaseException:
                    self._beam.blank_for_good()
                    raise

        stands = self._acquisition.call(move).result()
        self._arrived()
        if lit:
            self._beam.unblank(since)
        return stands

    def shift_image(self, to_nm: tuple[float, float]) -> None:
        """Let the camera look beside. Raises `RefusedError` where that is not possible."""
        control = self._beam.parts.image_shift
        if control is None:
            raise RefusedError("this instrument's image cannot be shifted from here")

        def shift() -> None:
            with self._moving():
                control.set_image_shift(*to_nm)

        self._acquisition.call(shift).result()

    def shift_beam(self, to_nm: tuple[float, float]) -> None:
        """Let the beam fall beside. Raises `RefusedError` where that is not possible."""
        control = self._beam.parts.beam_shift
        if control is None:
            raise RefusedError("this instrument's beam cannot be shifted from here")
        control.set_beam_shift(*to_nm)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        # The drift up to here is that of frames that may still be on their way.
        self._processor.drain()
        self._whereabouts.look()
        try:
            yield
        finally:
            self._processor.forget()
            self._moved()
            self._whereabouts.look()
