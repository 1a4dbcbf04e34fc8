"""A camera of another package: built, installed, found by its entry points, used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tem_live import doctor
from tem_live.errors import NotConnectedError, ProfileError
from tem_live.profiles import load_profile
from tem_live.session import open_session
from tests.drivers.conformance import CameraConformance

PACKAGE = Path(__file__).parent / "example_package"
PROFILE = """
title = "An example"

[camera]
driver = "example"
address = "here"
exposure_s = 0.005

[column]
driver = "example"

[restorer]
model = "none"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package was installed to; the source is copied, since a build leaves things."""
    folder = tmp_path_factory.mktemp("example")
    source = folder / "source"
    source.mkdir()
    for file in PACKAGE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    target = folder / "site-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode != 0 and "setuptools" in done.stderr and "No module" in done.stderr:
        pytest.skip("setuptools is not installed: nothing can be built without network")
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(autouse=True)
def path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(installed))
    yield
    sys.modules.pop("example_cameras", None)


class TestExampleCamera(CameraConformance):
    def make_camera(self) -> Any:
        example = import_module("example_cameras")
        return example.ExampleCamera(example.ExampleOptions(address="here"))


def test_a_profile_may_name_it(tmp_path: Path) -> None:
    profile = tmp_path / "example.toml"
    profile.write_text(PROFILE)
    with open_session(str(profile)) as session:
        assert session.capabilities.name == "Example"
        assert session.blanked is True
        frames = list(session.frames(5))
        assert session.blanked is True
    # Unblanked while they were taken.
    assert np.mean([frame.raw for frame in frames]) == pytest.approx(5.0, rel=0.05)
    assert [frame.meta.sequence for frame in frames] == [0, 1, 2, 3, 4]


def test_its_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    profile = tmp_path / "example.toml"
    profile.write_text(PROFILE)
    with pytest.raises(ProfileError, match=r"camera\.adress.*did you mean 'address'"):
        open_session(load_profile(str(profile), ["camera.adress=there"]))
    with pytest.raises(NotConnectedError, match=r"set camera\.address"):
        open_session(load_profile(str(profile), ["camera.address=nowhere"]))


def test_doctor_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tem_live.profiles.user_folder", lambda: tmp_path)

    def row() -> dict[str, Any]:
        return next(row for row in doctor.examine() if row["name"] == "example")

    assert (row()["installed"], row()["reachable"]) == (True, False)
    assert row()["mend"] == "set camera.address in a profile 'example'"
    (tmp_path / "example.toml").write_text(PROFILE)
    assert (row()["reachable"], row()["mend"]) == (True, None)


def test_the_program_lists_it_as_known(tmp_path: Path) -> None:
    profile = tmp_path / "wrong.toml"
    profile.write_text('[camera]\ndriver = "exmaple"\n')
    with pytest.raises(ProfileError, match=r"known: .*example"):
        open_session(str(profile))
