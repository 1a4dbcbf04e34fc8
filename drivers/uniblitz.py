"""Uniblitz VMM-D1 and VMM-D3 shutter drivers (Vincent Associates) over RS-232.

**The shutter is not read back**: the instrument sends nothing. `Uniblitz.blanked` says what was
commanded last, and counts as not blanked whenever that is not known. Somebody at the driver's
switches, its trigger input or a shutter that sticks go unnoticed.

Single characters without terminator at 9600 baud, 8N1. Sources: Openlab technical note 152,
"Controlling the VMM-D3 Three Channel Shutter Driver" (PerkinElmer, 2005), for all three channels;
the same maker's VMM-T1 User Manual, page 36, has the same open and close. A closed shutter takes
the beam off the specimen.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from tem_live.drivers.serial_blanker import SerialBlanker
from tem_live.drivers.serial_link import LinkSettings, Port

_CODES: dict[int | str, tuple[bytes, bytes]] = {
    1: (b"@", b"A"),
    2: (b"B", b"C"),
    3: (b"D", b"E"),
    "all": (b"F", b"G"),
}
"""What opens and what closes each channel."""


class UniblitzOptions(BaseModel):
    """Fields of ``[column]`` with ``driver = "uniblitz"``.

    Attributes
    ----------
    port : str
        Name or URL of the serial port, ``sim`` for a simulated shutter.
    channel : {1, 2, 3, "all"}
        Which shutter takes the beam away. A VMM-D1 has channel 1 alone: to one-channel drivers of
        this maker B and C mean something else.
    delay_s : float
        How long the shutter takes to move, in seconds; setting it waits that long.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: str = Field(min_length=1)
    channel: Literal[1, 2, 3, "all"] = 1
    delay_s: float = Field(default=0.02, ge=0, le=5, allow_inf_nan=False)


class Uniblitz(SerialBlanker):
    """See the module's text. Opening it closes the shutter; closing it leaves it as it is.

    Parameters
    ----------
    options : UniblitzOptions
        The port and the channel.
    camera : object
        Not needed; a simulated camera's beam is what the simulated shutter blanks.
    """

    Options: ClassVar[type[BaseModel]] = UniblitzOptions

    def __init__(self, options: UniblitzOptions, camera: object = None) -> None:
        self._options = options
        settings = LinkSettings(port=options.port, baud=9600, terminator=b"")
        super().__init__(settings, lambda: _simulated(options, camera), options.delay_s)

    @override
    def _send(self, blanked: bool) -> None:
        opens, closes = _CODES[self._options.channel]
        self._link.command(closes if blanked else opens)


def _simulated(options: UniblitzOptions, camera: object) -> Port:
    from tem_live.drivers.sim_serial import SimulatedPort, SimulatedUniblitz, beam_of

    set_blanked = beam_of(camera)

    def moved(channel: int, opened: bool) -> None:
        if options.channel in (channel, "all"):
            set_blanked(not opened)

    return SimulatedPort(SimulatedUniblitz(moved).receive)
