from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.drivers.servers.twin import Twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    """A running de-twin, one for all tests: its start takes long."""
    running = Twin(tmp_path_factory.mktemp("twin") / "log.txt")
    yield running
    running.end()


@pytest.fixture
def cameras() -> Iterator[list[Any]]:
    """What a test adds to it is closed at its end."""
    made: list[Any] = []
    yield made
    for camera in made:
        camera.close()
