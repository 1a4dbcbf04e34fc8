from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.servers.twin import Twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    """A running de-twin, one for all tests: its start takes long."""
    running = Twin(tmp_path_factory.mktemp("twin") / "log.txt")
    yield running
    running.end()
