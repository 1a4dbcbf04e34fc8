"""A link to a GenICam camera that sends what a test puts into it."""

from __future__ import annotations

import time

from tem_live.drivers.genicam_link import Block, Value
from tem_live.errors import DisconnectedError


class BrokenLink:
    """A camera that sends what a test puts into ``blocks``."""

    name = "a camera"

    def __init__(self) -> None:
        self.values: dict[str, Value] = {
            "PixelFormat": "Mono12", "Width": 8, "Height": 6, "ExposureTime": 1e4,
        }  # fmt: skip
        self.blocks: list[Block] = []
        self.alive = True

    def has(self, feature: str) -> bool:
        return feature in self.values

    def writable(self, feature: str) -> bool:
        return feature in self.values

    def get(self, feature: str) -> Value:
        return self.values[feature]

    def set(self, feature: str, value: Value) -> None:
        self.values[feature] = value

    def limits(self, feature: str) -> tuple[float, float, float]:
        return {"ExposureTime": (10.0, 1e6, 0.0), "Width": (1.0, 8.0, 1.0)}.get(
            feature, (1.0, 6.0, 1.0)
        )

    def entries(self, feature: str) -> list[str]:
        return ["Mono12"]

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def fetch(self, wait_s: float) -> Block | None:
        if self.blocks:
            return self.blocks.pop(0)
        time.sleep(wait_s)
        return None

    def check(self) -> None:
        if not self.alive:
            raise DisconnectedError("a camera is gone")

    def probe(self) -> None:
        self.check()

    def close(self) -> None: ...
