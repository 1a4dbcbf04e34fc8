"""A simulated scanning microscope.

| module | what it is |
| --- | --- |
| `sim_scan_camera` | the scan as a camera: its series of frames, and the truth of each |
| `sim_scan_column` | its column: a fast blanker and the probe's current |
| `sim_scan` | when and where the probe is |
| `sim_scan_detector`, `sim_readout` | from electrons to counts |

Beam, specimens and random numbers are those of `tem_live.drivers.sim`.
"""

from tem_live.drivers.sim_microscope import ELECTRONS_PER_S_PER_PA
from tem_live.drivers.sim_scan import Timing, displacements, probed
from tem_live.drivers.sim_scan_camera import SimStem
from tem_live.drivers.sim_scan_column import SimStemColumn
from tem_live.drivers.sim_scan_detector import trail

__all__ = [
    "ELECTRONS_PER_S_PER_PA",
    "SimStem",
    "SimStemColumn",
    "Timing",
    "displacements",
    "probed",
    "trail",
]
