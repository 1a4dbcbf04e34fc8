"""viva-genicam's simulated GigE Vision camera, which others wrote, in a process of its own.

It speaks the real protocol on loopback. Its pixels are known: byte ``k`` of block ``b`` is
``(b + 7 k) mod 256``. GigE Vision cameras are found on UDP port 3956, so there is one at a time.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.drivers.servers.libertem_live import Peer

PORT = 3956
_FREE_WITHIN_S = 60.0
_PROGRAM = """
import sys, time
from viva_genicam.testing import FakeGigeCamera
width, height, fps, drops = map(int, sys.argv[1:])
# Blocks without their fourth packet, which is never sent again.
drop = [(7 + 5 * i, 3) for i in range(drops)]
fake = FakeGigeCamera(width, height, fps, pixel_format="Mono16", packet_resend=not drops,
                      drop_packets=drop)
fake.start()
print("ready", flush=True)
# It ends with the test, whatever becomes of that.
for line in sys.stdin:
    fake.revoke_control()
"""


class GigePeer(Peer):
    def __init__(
        self, log: Path, width: int = 96, height: int = 64, fps: int = 40, drops: int = 0
    ) -> None:
        pytest.importorskip("viva_genicam")
        _await_free_port()
        arguments = [str(number) for number in (width, height, fps, drops)]
        super().__init__([sys.executable, "-c", _PROGRAM, *arguments], ("ready",), log)

    def revoke_control(self) -> None:
        """As a camera does that another program takes."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"revoke\n")
        self.process.stdin.flush()


def picture(block: int, shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """What a block shows."""
    count = 2 * shape[0] * shape[1]
    flat = ((block + 7 * np.arange(count)) % 256).astype(np.uint8)
    return flat.view("<u2").reshape(shape).astype(np.uint16)


def _await_free_port() -> None:
    deadline = time.monotonic() + _FREE_WITHIN_S
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            try:
                line.bind(("127.0.0.1", PORT))
            except OSError:
                if time.monotonic() > deadline:
                    pytest.skip("another GigE Vision camera is simulated on this computer")
                time.sleep(0.1)
            else:
                return
