"""Names of computers: what no connection can be tried to is refused by the profile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from tem_live.drivers import native
from tem_live.drivers.dectris_simplon import answers
from tem_live.drivers.families import listens
from tem_live.drivers.hosts import Host
from tem_live.drivers.serval import FAMILY as SERVAL
from tem_live.errors import InputError
from tem_live.instrument import make_camera
from tem_live.profiles import load_profile

NAMES_OF_NONE = ["merlin..lab", ".lab", "a" * 70, "my camera", "camera\n", "camera\x00"]


class Options(BaseModel):
    host: Host


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "fe80::1%eth0", "merlin-pc.lab", "k2_pc", ""])
def test_names_and_addresses_are_taken_as_they_are(name: str) -> None:
    assert Options(host=name).host == name


@pytest.mark.parametrize("name", NAMES_OF_NONE)
@pytest.mark.parametrize("profile", ["merlin", "gatan", "dectris", "serval", "de-twin", "thermo"])
def test_others_are_refused_in_one_line(profile: str, name: str) -> None:
    with pytest.raises(InputError, match="host") as caught:
        make_camera(load_profile(profile, {"camera.host": name}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES_OF_NONE)
def test_nobody_is_there_under_such_a_name(name: str) -> None:
    assert SERVAL.reach is not None
    for reach in (answers, SERVAL.reach, lambda fields: listens(fields, port=1)):
        assert not reach({"host": name, "port": 1})


def test_a_library_is_found_by_the_path_that_windows_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "atcore.dll").touch()
    found = str(tmp_path / "atcore.dll")
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path / "none"), str(tmp_path))))
    assert found not in native.candidates(["atcore.dll"], None, [])
    monkeypatch.setattr(native, "_is_windows", lambda: True)
    assert native.candidates(["atcore.dll"], None, []) == [found, "atcore.dll"]
