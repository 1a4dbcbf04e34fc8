"""A simulated microscope: camera, column and specimen that behave like real ones.

| module | what it is |
| --- | --- |
| `sim_camera` | the camera: its series of frames, and the truth of each |
| `sim_column` | the column: all that a column can have |
| `sim_microscope` | the beam that both share, and its history |
| `sim_scenes`, `sim_layout` | specimens, and what they are made of |
| `sim_view` | what of a specimen the sensor sees |
| `sim_detector`, `sim_readout` | from electrons to counts |
| `sim_chance` | random numbers |

`tem_live.drivers.sim_stem` is the scan.
"""

from tem_live.drivers.sim_camera import SimCamera
from tem_live.drivers.sim_chance import PoissonTable, spread_energies
from tem_live.drivers.sim_column import SimColumn
from tem_live.drivers.sim_detector import Detector
from tem_live.drivers.sim_microscope import SimMicroscope

__all__ = [
    "Detector",
    "PoissonTable",
    "SimCamera",
    "SimColumn",
    "SimMicroscope",
    "spread_energies",
]
