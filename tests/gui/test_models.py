"""Models of the GUI: no Qt in here."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tem_live.device_frame import DeviceFrame, DevicePlane
from tem_live.frames import NumpyBackend
from tem_live.gui.models import quantities as q
from tem_live.gui.models.levels import LevelsModel, follow, histogram, robust_levels, sample
from tem_live.gui.models.render import (
    Extent,
    PaneLevels,
    RenderRequest,
    drawn_extent,
    line_profile,
    power_spectrum,
    render,
    to_bytes,
)
from tem_live.gui.models.roi import roi_from_view
from tem_live.gui.models.scale_bar import scale_bar
from tem_live.gui.models.settings import (
    GuiSettings,
    SettingsStore,
    recording_name,
    recordings_folder,
    shown_path,
)
from tem_live.gui.models.view_state import clip_line, default_line
from tests.gui.planes import on_device, plane_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (5.0, "5.00"),
        (9.996, "10.0"),
        (0.01234, "0.0123"),
        (999.6, "1000"),
        (1234.0, "1234"),
        (12345.0, "12\u2009345"),
        (1.2e6, "1.20×10⁶"),
        (3.4e-5, "3.40×10⁻⁵"),
        (-2.5, "-2.50"),
    ],
)
def test_number(value, text):
    assert q.number(value) == text


def test_quantity_has_its_unit_and_nothing_has_none():
    assert q.quantity(25.0, q.RATE_PX) == "25.0 e⁻/px/s"
    assert q.quantity(None, q.RATE_PX) == "–"
    assert q.count(1234567) == "1\u2009234\u2009567"
    assert q.pixel_size(None) == "no calibration"
    assert q.pixel_size(0.1) == "0.100 nm/px"


@pytest.mark.parametrize("value", [0.0123, 5.0, 12345.0, 1.2e6, 3.4e-5])
def test_shown_numbers_can_be_read_back(value):
    shown = f"{q.number(value)} {q.RATE_PX}"
    assert q.parse_number(shown, q.RATE_PX) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0.2, "200 ms"), (1.5, "1.5 s"), (5e-5, "50 µs"), (0.001, "1 ms"), (0.0, "0 s"), (12, "12 s")],
)
def test_seconds_there_and_back(value_s, text):
    assert q.seconds(value_s) == text
    assert q.parse_seconds(text) == pytest.approx(value_s)


def test_duration_in_the_users_words():
    assert q.parse_seconds("250", "ms") == pytest.approx(0.25)
    assert q.parse_seconds("0,5 s") == pytest.approx(0.5)
    assert q.parse_seconds("100us") == pytest.approx(1e-4)
    assert q.unit_of_seconds("200 ms") == "ms"
    for wrong in ("", "abc", "5 nm"):
        with pytest.raises(ValueError, match="is no duration"):
            q.parse_seconds(wrong)
    with pytest.raises(ValueError, match="is no number"):
        q.parse_number("abc", q.RATE_PX)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12 000", 12000.0),
        ("12\u2009000", 12000.0),
        ("12 000.5 e-/px/s", 12000.5),
        ("5.", 5.0),
        (",5", 0.5),
        ("0,125", 0.125),
        ("1e3", 1000.0),
        ("50 e/px/s", 50.0),
        ("1.20×10⁶ e⁻/px/s", 1.2e6),
    ],
)
def test_numbers_are_taken_as_they_are_meant(text, value):
    assert q.parse_number(text, q.RATE_PX) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["10,000", "1,000.5", "1.2.3", "12 0000", "1 00", "-5", "50 e-/A2/s", "5 nm", "5 000 000 x"],
)
def test_numbers_that_may_mean_something_else_are_refused(text):
    with pytest.raises(ValueError, match=r"is no number|is not in"):
        q.parse_number(text, q.RATE_PX)


@pytest.mark.parametrize("text", ["-1 s", "1,000 ms"])
def test_durations_that_may_mean_something_else_are_refused(text):
    with pytest.raises(ValueError, match="is no duration"):
        q.parse_seconds(text)


def test_dose_per_area():
    # 0.1 nm pixels are one square angstrom.
    assert q.dose_per_area(5.0, 0.1) == pytest.approx(5.0)
    assert q.dose_per_area(5.0, None) is None


def test_clock():
    assert q.clock(75) == "01:15"
    assert q.clock(3675) == "1:01:15"


@pytest.mark.parametrize(
    ("value", "steps", "result"),
    [
        (1, 1, 2),
        (2, 1, 5),
        (0.05, 1, 0.1),
        (0.2, -1, 0.1),
        (3, 1, 5),
        (3, -1, 2),
        (10, 3, 100),
        (0, 1, 1),
        (0, -1, 0),
    ],
)
def test_steps_go_one_two_five(value, steps, result):
    assert q.next_step(value, steps) == pytest.approx(result)


@pytest.mark.parametrize(
    ("pixel_nm", "zoom", "text"),
    [
        (0.1, 1.0, "10 nm"),
        (0.1, 2.0, "5 nm"),
        (0.01, 1.0, "1 nm"),
        (0.004, 1.0, "0.5 nm"),
        (10.0, 1.0, "1 µm"),
        (30.0, 1.0, "2 µm"),
        (1.7, 1.0, "200 nm"),
    ],
)
def test_scale_bar_steps(pixel_nm, zoom, text):
    bar = scale_bar(pixel_nm, zoom, 128.0)
    assert bar is not None
    assert bar.text == text
    assert 128 / 2.5 - 1e-6 <= bar.width_px <= 128 + 1e-6
    # What is drawn is as long as it says.
    assert bar.width_px / zoom * pixel_nm == pytest.approx(bar.length_nm)


def test_no_scale_bar_without_calibration():
    assert scale_bar(None, 1.0, 128.0) is None
    assert scale_bar(0.1, 0.0, 128.0) is None
    assert scale_bar(0.0, 1.0, 128.0) is None


def test_robust_levels_leave_hot_pixels_alone():
    values = np.random.default_rng(0).normal(5, 1, (200, 200)).astype(np.float32)
    values[0, 0] = 1e6
    values[1, 1] = np.nan
    low, high = robust_levels(sample(values), 0.3, 99.7)
    assert 1.5 < low < 3
    assert 7 < high < 8.5
    shape = histogram(sample(values))
    assert shape.stop < 20
    assert shape.counts.max() == pytest.approx(1.0)


def test_levels_and_histogram_are_those_of_numpy():
    values = np.random.default_rng(0).gamma(2.0, 3.0, (120, 130)).astype(np.float32)
    expected = np.percentile(values.astype(np.float64), (0.3, 99.7))
    assert robust_levels(sample(values), 0.3, 99.7) == pytest.approx(tuple(expected), rel=1e-6)
    shape = histogram(sample(values))
    counts, _ = np.histogram(values, 128, (shape.start, shape.stop))
    smooth = np.convolve(counts, [0.5, 1.0, 0.5], mode="same")
    assert np.corrcoef(shape.counts, smooth)[0, 1] > 0.999


def test_levels_of_nothing_and_of_a_flat_frame():
    assert robust_levels(np.zeros(0, np.float32), 1, 99) == (0.0, 1.0)
    assert histogram(np.zeros(0, np.float32)).counts.sum() == 0
    low, high = robust_levels(np.full(10, 3.0, np.float32), 1, 99)
    assert high > low
    assert np.isfinite(histogram(np.full(10, 3.0, np.float32)).counts).all()


def test_sample_is_small_and_spread():
    plane = np.broadcast_to(np.arange(4096, dtype=np.float32), (4096, 4096))
    values = sample(plane)
    assert values.size <= 70_000
    assert values.max() > 4000


def test_empty_field_is_not_blown_up_to_full_contrast():
    values = np.random.default_rng(0).normal(100, 0.01, (100, 100)).astype(np.float32)
    low, high = robust_levels(sample(values), 0.3, 99.7)
    assert high - low == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (99.531, 100.312, ("99.531", "100.312")),
        (0.0, 12.0, ("0.0", "12.0")),
        (-1e-9, 5.0, ("0.00", "5.00")),
        (120.4, 980.2, ("120", "980")),
        (5.0, 5.0, ("5.00", "5.00")),
        (0.0, 2e6, ("0", "2.00×10⁶")),
    ],
)
def test_ends_of_a_range(low, high, texts):
    assert q.span(low, high) == texts


def test_levels_follow_smoothly_and_jump_to_a_new_scene():
    low, high = follow((0.0, 10.0), (1.0, 11.0))
    assert (low, high) == pytest.approx((0.3, 10.3))
    assert follow((0.0, 10.0), (100.0, 120.0)) == (100.0, 120.0)


def test_levels_by_hand_are_in_order_and_stay():
    levels = LevelsModel()
    seen = []
    levels.events.auto.connect(lambda value: seen.append(value))
    levels.set_manual(4.0, 2.0)
    assert (levels.low, levels.high, levels.auto) == (2.0, 4.0, False)
    assert seen == [False]


def request(**changes):
    pane = PaneLevels(True, 0.0, 1.0, 0.3, 99.7)
    return RenderRequest(generation=7, raw=pane, restored=pane, **changes)


def test_rendered_pair_comes_from_one_frame(make_session):
    frame = make_session(shape=(64, 96)).make_frame()
    pair = render(on_device(frame), request())
    assert pair.generation == 7
    assert pair.meta is frame.meta
    np.testing.assert_array_equal(pair.raw.plane.part(), frame.electrons)
    np.testing.assert_array_equal(pair.restored.plane.part(), frame.restored)
    assert pair.raw.image.shape == (64, 96)
    assert pair.raw.spectrum is None
    assert pair.raw.profile is None


def test_shared_levels_are_those_of_the_restored_plane(make_session):
    frame = on_device(make_session(shape=(64, 64)).make_frame())
    own = render(frame, request())
    assert own.raw.levels != own.restored.levels
    shared = render(frame, request(shared=True))
    assert shared.raw.levels == shared.restored.levels == own.restored.levels


def test_levels_by_hand_are_used(make_session):
    frame = on_device(make_session(shape=(64, 64)).make_frame())
    pane = PaneLevels(False, 2.0, 8.0, 0.3, 99.7)
    pair = render(frame, RenderRequest(generation=0, raw=pane, restored=pane))
    assert pair.raw.levels == (2.0, 8.0)
    expected = np.clip((frame.electrons.part() - 2) / 6 * 255, 0, 255)
    assert np.abs(pair.raw.image - expected).max() <= 1


def test_without_restored_plane(make_session):
    frame = on_device(make_session(shape=(64, 64), model="none").make_frame())
    pair = render(frame, request(shared=True, spectrum=True))
    assert pair.restored is None
    assert pair.raw.spectrum.shape == (64, 64)


def test_rolling_mean_takes_the_place_of_raw_if_it_fits(make_session):
    frame = on_device(make_session(shape=(64, 64)).make_frame())
    mean = plane_of(np.full((64, 64), 3.0))
    assert render(frame, request(), mean).raw.plane is mean
    assert render(frame, request(), mean).is_mean
    assert not render(frame, request(), plane_of(np.zeros((32, 32)))).is_mean


def test_to_bytes_ends_and_no_numbers():
    plane = np.array([[-1.0, 0.0, 5.0, 10.0, 99.0, np.nan]], np.float32)
    assert to_bytes(plane, 0.0, 10.0).tolist() == [[0, 0, 127, 255, 255, 0]]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, Extent(0, 0, 96, 128)),
        # A quarter more on each side, in whole squares of 4 px, a rest at the edge left out.
        ((40.0, 60.0, 20.0, 36.0), Extent(16, 32, 24, 36)),
        ((-50.0, 300.0, -50.0, 300.0), Extent(0, 0, 96, 128)),
        ((90.0, 200.0, -50.0, 10.0), Extent(0, 60, 28, 68)),
        # Beside the frame, and closer than a pixel.
        ((500.0, 600.0, 500.0, 600.0), Extent(92, 124, 4, 4)),
        ((-80.0, -60.0, -80.0, -60.0), Extent(0, 0, 4, 4)),
        ((50.1, 50.2, 50.1, 50.2), Extent(48, 48, 4, 4)),
    ],
)
def test_what_is_drawn_of_a_frame(visible, expected):
    assert drawn_extent((98, 130), 4, visible) == expected


@pytest.mark.parametrize("visible", [None, (0.0, 40.0, 0.0, 3.0), (-90.0, -80.0, 50.0, 60.0)])
def test_of_a_frame_smaller_than_a_square_something_is_drawn(visible):
    extent = drawn_extent((3, 40), 8, visible)
    assert (extent.top, extent.height) == (0, 3)
    assert 0 <= extent.left < extent.left + extent.width <= 40
    assert drawn_extent((3, 40), 8, None) == Extent(0, 0, 3, 39)


def test_one_extent_holds_another():
    drawn = Extent(10, 20, 30, 40)
    assert drawn.holds(drawn)
    assert drawn.holds(Extent(12, 22, 28, 38))
    for beyond in (
        Extent(9, 20, 30, 40),
        Extent(10, 19, 30, 40),
        Extent(10, 20, 31, 40),
        Extent(10, 20, 30, 41),
    ):
        assert not drawn.holds(beyond)


class FarBackend(NumpyBackend):
    """Counts what comes to the host."""

    def __init__(self):
        super().__init__()
        self.fetched_px = 0

    def on_host(self, plane):
        self.fetched_px += plane.size
        return self.download(plane)


def test_of_a_large_frame_only_what_is_shown_comes_to_the_host(make_session):
    backend = FarBackend()
    plane = np.random.default_rng(0).gamma(2.0, 3.0, (2048, 2048)).astype(np.float32)
    meta = make_session(shape=(64, 64)).make_frame().meta
    frame = DeviceFrame(DevicePlane(plane, backend), DevicePlane(plane, backend), meta)

    def fetched(**changes):
        backend.fetched_px = 0
        pair = render(frame, request(visible_of=(2048, 2048), **changes))
        return pair, backend.fetched_px

    whole, px = fetched(shrink=4)
    assert px == 2 * 512**2
    assert whole.raw.image.shape == (512, 512)
    seen = (700.0, 1100.0, 300.0, 700.0)
    part, px = fetched(visible=seen)
    assert part.raw.extent == Extent(200, 600, 600, 600)
    assert px <= 2 * (600**2 + 70_000)
    _, px = fetched(visible=seen, spectrum=True, profile=True)
    assert px < 0.4 * plane.size
    # Looking closer changes neither levels nor histogram, and shows the same pixels.
    all_of_it, _ = fetched()
    assert part.raw.levels == all_of_it.raw.levels
    np.testing.assert_array_equal(part.raw.histogram.counts, all_of_it.raw.histogram.counts)
    np.testing.assert_array_equal(part.raw.image, all_of_it.raw.image[200:800, 600:1200])
    backend.fetched_px = 0
    assert frame.electrons.at(17, 2000) == plane[17, 2000]
    assert backend.fetched_px == 1


def test_a_frame_smaller_than_a_point_of_the_screen_is_a_point(make_session):
    frame = on_device(make_session(shape=(64, 96)).make_frame())
    assert render(frame, request(shrink=128)).raw.image.shape == (1, 1)


def test_spectrum_peak_is_where_the_lattice_is():
    x = np.arange(256)
    plane = np.broadcast_to(5 + np.cos(2 * np.pi * x * 32 / 256), (256, 256)).astype(np.float32)
    spectrum = power_spectrum(plane_of(plane))
    assert spectrum.shape == (256, 256)
    # 32 periods over the frame stand 32 bins beside the middle.
    assert spectrum[128, 128 + 32] == 255
    assert spectrum[128, 128 - 32] == 255
    assert spectrum[128 + 32, 128] < 200
    assert power_spectrum(plane_of(np.zeros((1024, 700)))).shape == (512, 512)


def test_spectrum_axis_ends_at_nyquist(make_session):
    frame = on_device(make_session(shape=(64, 64), pixel_size_nm=0.05).make_frame())
    assert render(frame, request()).nyquist_per_nm == pytest.approx(10.0)
    bare = on_device(make_session(shape=(64, 64), pixel_size_nm=None).make_frame())
    assert render(bare, request()).nyquist_per_nm is None


def test_profile_values_and_distance(make_session):
    ramp = np.broadcast_to(np.arange(100, dtype=np.float32), (60, 100))
    values = line_profile(plane_of(ramp), ((10.5, 30.5), (60.5, 30.5)))
    assert values.shape == (51,)
    assert values == pytest.approx(np.arange(10, 61), abs=1e-3)
    session = make_session(shape=(64, 64), pixel_size_nm=0.2)
    frame = on_device(session.make_frame())
    pair = render(frame, request(profile=True, line=((0.0, 32.0), (30.0, 32.0))))
    assert pair.profile_nm[-1] == pytest.approx(6.0)
    assert pair.profile_nm.shape == pair.raw.profile.shape == pair.restored.profile.shape


def test_profile_line_outside_the_frame_is_clipped(make_session):
    session = make_session(shape=(64, 64))
    frame = on_device(session.make_frame())
    pair = render(frame, request(profile=True, line=((-50.0, -50.0), (500.0, 70.0))))
    assert np.isfinite(pair.raw.profile).all()
    assert clip_line(((-5.0, 2.0), (99.0, 99.0)), (64, 64)) == ((0.0, 2.0), (64.0, 64.0))
    assert default_line((100, 200)) == ((40.0, 50.0), (160.0, 50.0))


def test_roi_from_view_is_on_the_grid_and_on_the_sensor():
    full = (0, 0, 512, 512)
    assert roi_from_view((100.2, 200.9, 50, 120), full, 1, (512, 512)) == (48, 96, 80, 112)
    assert roi_from_view((-50, 900, -10, 900), full, 1, (512, 512)) == full
    # Binned pixels count double, and a region within a region keeps its offset.
    assert roi_from_view((0, 64, 0, 64), full, 2, (512, 512)) == (0, 0, 128, 128)
    assert roi_from_view((0, 32, 0, 32), (128, 64, 256, 256), 1, (512, 512)) == (128, 64, 32, 32)
    for zoomed in ((511.9, 512.0, 511.9, 512.0), (0.1, 0.2, 0.1, 0.2)):
        top, left, height, width = roi_from_view(zoomed, full, 1, (512, 512))
        assert height >= 16
        assert width >= 16
        assert top + height <= 512
        assert left + width <= 512


def test_settings_there_and_back(tmp_path):
    store = SettingsStore(tmp_path / "new folder" / "gui.json")
    assert store.load() == (GuiSettings(), None)
    wanted = GuiSettings(width=1500, colours="viridis", spectrum=True, record_folder="somewhere")
    assert store.save(wanted) is None
    assert store.load() == (wanted, None)
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["gui.json"]


@pytest.mark.parametrize("content", [b"{ not json", b'{"width": "wide"}', b"\xff\xfe\x00", b""])
def test_broken_settings_are_set_aside(tmp_path, content):
    path = tmp_path / "gui.json"
    path.write_bytes(content)
    settings, message = SettingsStore(path).load()
    assert settings == GuiSettings()
    assert "defaults used" in message
    assert not path.exists()
    assert (tmp_path / "gui.json.broken").read_bytes() == content
    # A second time the earlier broken file does not stop it either.
    path.write_bytes(content)
    assert SettingsStore(path).load()[0] == GuiSettings()


def test_settings_that_cannot_be_written_are_a_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = SettingsStore(tmp_path / "file" / "gui.json").save(GuiSettings())
    assert message.startswith("the settings of the GUI cannot be saved")


def test_unknown_settings_of_a_newer_version_are_ignored(tmp_path):
    (tmp_path / "gui.json").write_text('{"width": 1400, "hologram": true}')
    assert SettingsStore(tmp_path / "gui.json").load() == (GuiSettings(width=1400), None)


def test_recording_names_and_folders():
    when = datetime(2025, 3, 4, 5, 6, 7)
    assert recording_name("sim", when) == "sim_20250304-050607.zarr"
    assert recording_name("my: scope/1", when) == "my__scope_1_20250304-050607.zarr"
    assert recordings_folder() == Path.home() / "tem_live recordings"
    assert recordings_folder("elsewhere") == Path("elsewhere")
    assert shown_path(Path.home() / "a") == str(Path("~") / "a")


def test_models_do_not_know_qt():
    code = (
        "import sys, pkgutil, importlib, tem_live.gui.models as m\n"
        "for x in pkgutil.iter_modules(m.__path__):\n"
        "    importlib.import_module(m.__name__ + '.' + x.name)\n"
        "assert not [n for n in sys.modules if n.startswith(('PySide6', 'pyqtgraph'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
