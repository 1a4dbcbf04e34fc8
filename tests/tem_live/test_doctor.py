from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tem_live import doctor
from tem_live.drivers.families import Family, Vendor, listens


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Callable[[Family], dict[str, Any]]:
    def examined(family: Family) -> dict[str, Any]:
        monkeypatch.setattr(doctor, "find_families", lambda: ({family.name: family}, {}))
        return next(row for row in doctor.examine() if row["name"] == family.name)

    return examined


def test_the_families_are_listed_in_order_each_once() -> None:
    names = [row["name"] for row in doctor.examine()]
    assert tuple(names[: len(doctor.FAMILIES)]) == doctor.FAMILIES
    assert len(set(names)) == len(names)


def test_what_a_driver_declares_is_found_by_its_entry_point() -> None:
    families, broken = doctor.find_families()
    assert {"micro-manager", "direct-electron", "dectris", "merlin"} <= set(families)
    assert not broken
    for family in families.values():
        assert family.tested_against, family.name
        assert family.start or family.reach is None, family.name


def test_reachable_follows_the_peer(row: Any, server: socket.socket) -> None:
    port = server.getsockname()[1]
    family = Family("new", reach=lambda fields: listens(fields, port=port), start="switch it on")
    there = row(family)
    assert (there["installed"], there["reachable"], there["mend"]) == (True, True, None)
    server.close()
    gone = row(family)
    assert (gone["reachable"], gone["missing"]) == (False, "an answer")
    assert gone["mend"] == "switch it on"


def test_a_missing_package_has_its_command(row: Any) -> None:
    family = Family(
        "new",
        packages=("no_such_package_of_ours",),
        install="pip install it",
        reach=lambda _: True,
        start="switch it on",
    )
    found = row(family)
    assert (found["installed"], found["reachable"]) == (False, None)
    assert "no_such_package_of_ours" in found["missing"]
    assert found["mend"] == "pip install it"


def test_what_the_vendor_has_to_install_is_named(row: Any) -> None:
    vendor = Vendor(name="its library", is_there=lambda: False, install="get it from the vendor")
    found = row(Family("new", vendor=vendor))
    assert (found["installed"], found["missing"]) == (False, "its library")
    assert found["mend"] == "get it from the vendor"


def test_a_device_that_hangs_or_fails_is_not_reachable(
    row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "REACH_WITHIN_S", 0.1)
    freed = threading.Event()
    try:
        assert row(Family("new", reach=lambda _: freed.wait(30)))["reachable"] is False
    finally:
        freed.set()

    def fails(_: object) -> bool:
        raise RuntimeError("no such library")

    assert row(Family("new", reach=fails))["reachable"] is False


def test_a_driver_that_cannot_be_loaded_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    points = doctor.drivers(doctor.CAMERAS)
    broken = type(next(iter(points.values())))("broken", "no_such_module:Camera", doctor.CAMERAS)
    monkeypatch.setattr(
        doctor, "drivers", lambda group: {**points, "broken": broken} if "cam" in group else {}
    )
    rows = {row["name"]: row for row in doctor.examine()}
    assert "no_such_module" in rows["broken"]["missing"]
    assert rows["merlin"]["installed"]


def test_the_fields_are_those_of_the_profile(row: Any, server: socket.socket) -> None:
    seen: list[Any] = []
    row(Family("merlin", reach=lambda fields: bool(seen.append(fields))))
    assert seen[0]["data_port"] == 6342
