"""What it takes to add a booking to the fluence map, and to paint the map for the window."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from tem_live.fluence_map import FluenceMap, Place
from tem_live.gui.models.fluence_map import map_pictures

TABLE = np.zeros((256, 3), np.uint8)


def main() -> None:
    """Print milliseconds, for a beam as that of `sim` and for a map as large as it gets."""
    for radius_nm in (87.0, 460.0):
        made = FluenceMap(1.0)
        place = Place(0.0, 0.0, 102.4, 102.4, (0.0, 0.0, radius_nm))
        added, painted = [], []
        for _ in range(20):
            began_s = time.perf_counter()
            made.add(place, 1.0)
            between_s = time.perf_counter()
            read = SimpleNamespace(map=made, unplaced_e_per_A2=0.0)
            map_pictures(read, place, TABLE)  # type: ignore[arg-type]
            painted.append(time.perf_counter() - between_s)
            added.append(between_s - began_s)
        print(
            f"{made.tiles} tiles: add {1e3 * np.median(added):.1f} ms, "
            f"paint {1e3 * np.median(painted):.1f} ms"
        )


if __name__ == "__main__":
    main()
