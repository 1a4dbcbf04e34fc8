"""Write the simulator's nanoparticles to the scene file that restorers are judged by.

``python tools/make_scene_file.py`` repeats ``models/scene_files/nanoparticles.png``. Figures refer
to the file and not to the simulator: they stay comparable when the simulator changes, and models
know nothing of the drivers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from imagecodecs import png_encode

from tem_live.drivers.sim_scenes import Motion, make_scene
from tem_live.drivers.sim_windows import Window

TARGET = Path(__file__).resolve().parent.parent / "models" / "scene_files" / "nanoparticles.png"
SIDE = 512
PIXEL_SIZE_NM = 0.2
SEED = 0
STEPS_PER_UNIT = 3276
"""Grey levels of a transmission of 1; twelve bits hold up to 1.25."""


def render() -> npt.NDArray[np.uint16]:
    """Transmission of the scene at rest, in grey levels (SIDE, SIDE)."""
    scene = make_scene(
        "nanoparticles", (SIDE, SIDE), PIXEL_SIZE_NM, Motion((0.0, 0.0), 0.0), 1, SEED
    )
    plane = scene.transmission(Window(0, 0, SIDE, SIDE), 0.0, 0.0)
    return np.rint(plane * STEPS_PER_UNIT).astype(np.uint16)


if __name__ == "__main__":
    TARGET.write_bytes(png_encode(render(), level=9))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
