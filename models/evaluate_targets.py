"""``python -m tem_live.models.evaluate_targets --model fast``: the targets, row by row.

What a restorer must do before it may be the default, each with a figure, its limit and whether it
is reached; ``tem-live evaluate --targets`` does the same. Scenes, cameras and seeds are fixed. A
row that cannot be measured here (no real frames are given, say) has neither a figure nor a verdict.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tem_live.errors import InputError, TemLiveError
from tem_live.models import cameras, evaluate, evaluate_columns, testscenes
from tem_live.models.evaluate_pair import empty_film, evaluate_pair
from tem_live.models.real_images import load_pair
from tem_live.models.restorers import Restorer, default_restorer, load_restorer
from tem_live.models.scores_tiles import tile_bias, tile_standard_error
from tem_live.models.scores_waves import bragg_kept, bragg_peaks, strongest_wave

__all__ = ["SECTIONS", "Row", "evaluate_targets", "main", "table"]

Array = npt.NDArray[np.float32]
Method = Callable[[Array], Array]

DOSES = (1.0, 5.0, 20.0)
RATIO_LIMITS = {1.0: 0.70, 5.0: 0.50, 20.0: 0.48}
"""Largest geometric mean of the error ratio, by dose in e-/px."""

LATTICES = (*testscenes.LATTICE_SCENES, "crystal", "boundary")
BIAS_CAMERAS: dict[str, cameras.Camera] = {
    **evaluate.CAMERAS,
    "defects": cameras.Camera(excess=0.5, read_e=0.5, defects=3e-4, xrays=20.0),
}
"""Cameras of the bias rows: hot, dead and X-ray hit pixels do not count there."""

_DRAWS = 4
# Exposures from which the standard error of a tile is taken.
_EXPOSURES = 8
_TILE_PX = 64
_TILE_LIMIT = 4.0
# Percent of the mean; in the raw frames of the real pair noise alone puts 0.5 % into every wave.
_WAVE_LIMIT = 0.2
_GMAC_SIDE = 512


@dataclass(frozen=True)
class Row:
    """One target.

    Attributes
    ----------
    target : str
        What is asked for.
    where : str
        On which frames.
    figure : float or None
        What was measured; None where that was not possible.
    limit : float
        What it is compared with.
    sense : str
        "at most", "at least" or "within" (plus or minus).
    note : str
        What else was seen, or why there is no figure.
    """

    target: str
    where: str
    figure: float | None
    limit: float
    sense: str = "at most"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a figure."""
        if self.figure is None:
            return None
        if self.sense == "at least":
            return self.figure >= self.limit
        return (abs(self.figure) if self.sense == "within" else self.figure) <= self.limit


@dataclass(frozen=True)
class _Task:
    restore: Method
    restorer: Restorer
    size: int
    pair: Path | None
    counts_per_electron: float


def _figure(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ----------------------------------------------------------------------------------- the sections


def _scenes(task: _Task) -> Iterator[Row]:
    """Error ratio on scenes that no training has seen."""
    for camera in evaluate.CAMERAS:
        rows = evaluate.evaluate_scenes(
            {"it": task.restore}, doses=DOSES, camera=camera, size=task.size
        )
        for line in evaluate.summarise(rows):
            dose = line["dose_e_per_px"]
            where = f"{camera}, {dose:g} e-/px, {line['scenes']} scenes"
            yield Row("error ratio", where, line["error_ratio"], RATIO_LIMITS[dose])
            worst = line["error_ratio_worst"]
            yield Row("error ratio, worst scene", where, worst, 1.0, note=line["worst_scene"])


def _bragg(task: _Task) -> Iterator[Row]:
    """Amplitudes of the Bragg peaks that stand out of the noise."""
    for dose in DOSES:
        worst: list[tuple[float, str]] = []
        off = total = 0
        for name in LATTICES:
            truth = dose * testscenes.reference_scene(name, task.size, 0)
            peaks = bragg_peaks(truth, dose)
            if not len(peaks.period_px):
                continue
            rng = np.random.default_rng([17, int(1000 * dose), sum(map(ord, name))])
            kept = np.mean(
                [
                    bragg_kept(peaks, task.restore(rng.poisson(truth).astype(np.float32)))
                    for _ in range(_DRAWS)
                ],
                axis=0,
            )
            index = int(np.argmax(np.abs(kept - 1.0)))
            told = f"{kept[index]:.2f} in {name}, {peaks.period_px[index]:.1f} px"
            worst.append((float(kept[index]) - 1.0, told))
            off += int((np.abs(kept - 1.0) > 0.2).sum())
            total += len(kept)
        deviation, told = max(worst, key=lambda item: abs(item[0]), default=(math.nan, ""))
        note = f"{off} of {total} peaks are off; worst: {told}" if total else "no peak to judge"
        where = f"poisson, {dose:g} e-/px, {len(worst)} lattices"
        yield Row("Bragg amplitude kept, minus 1", where, _figure(deviation), 0.20, "within", note)


def _pair(task: _Task) -> Iterator[Row]:
    """Real frames of a real camera."""
    error, texture, wave, psnr = (
        Row("real pair: error under the best Gaussian's, e-²", "", None, 0.05, "at least"),
        Row("real pair: texture in empty film", "", None, 0.016),
        Row("real pair: strongest wave in empty film, % of the mean", "", None, _WAVE_LIMIT),
        Row("real pair: PSNR to a long exposure, dB", "", None, 27.0, "at least"),
    )
    if task.pair is None:
        missing = "no real pair is given"
        yield from (dataclasses.replace(row, note=missing) for row in (error, texture, wave, psnr))
        return
    a, b = load_pair(task.pair, task.counts_per_electron)
    figures = evaluate_pair({"it": task.restore}, a, b)["it"]
    where = f"{float((a.mean() + b.mean()) / 2):.1f} e-/px, both ways"
    below = _figure(figures["below_gaussian_e2"])
    yield dataclasses.replace(error, where=where, figure=below)
    drawn = _figure(figures["texture"])
    yield dataclasses.replace(
        texture, where=where, figure=drawn, note="" if drawn is not None else "no empty film"
    )
    film = empty_film(a, b)
    waves = [_wave(task.restore(frame), film) for frame in (a, b)] if film.any() else []
    strongest, period = max(waves, default=(math.nan, math.nan))
    note = "no empty film" if not waves else "none stands out" if not strongest else ""
    yield dataclasses.replace(
        wave, where=where, figure=_figure(strongest), note=note or f"{period:.1f} px"
    )
    yield dataclasses.replace(psnr, where=where, note="there is no long exposure")


def _wave(image: Array, film: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Strongest wave over the film in percent of the mean, and its period in pixels."""
    detail = image - ndimage.gaussian_filter(image, 8.0)
    # A soft edge of the mask, so that it has no spectrum of its own.
    soft = np.clip(2.0 * ndimage.gaussian_filter(film.astype(np.float64), 4.0) - 1.0, 0.0, 1.0)
    amplitude, period = strongest_wave(detail, soft)
    return 100.0 * amplitude / float(image.mean()), period


def _nanoparticles(task: _Task) -> Iterator[Row]:
    """Simulated nanoparticles at 5 e-/px."""
    own = testscenes.reference_scene("nanoparticles", task.size, 0)
    file = testscenes.simulator_nanoparticles()[: task.size, : task.size]
    for name, scene in (("scene file of the simulator", file), ("test scene", own)):
        rows = evaluate.evaluate_scenes(
            {"it": task.restore},
            doses=(5.0,),
            seeds=(0, 1, 2, 3),
            references={"nanoparticles": np.asarray(scene / scene.mean(), dtype=np.float32)},
        )
        (line,) = evaluate.summarise(rows)
        gauss = float(np.exp(np.mean([np.log(row["gaussian_gain"]) for row in rows])))
        where = f"{name}, 5 e-/px, 4 seeds"
        note = f"best Gaussian: {gauss:.0f}"
        yield Row("nanoparticles: dose gain", where, line["dose_gain"], 200.0, "at least", note)
        yield Row("nanoparticles: error ratio", where, line["error_ratio"], 0.5)


def _bias(task: _Task) -> Iterator[Row]:
    """Mean of the frame and of its tiles."""
    for name, camera in BIAS_CAMERAS.items():
        means: list[tuple[float, str]] = []
        tiles: list[tuple[float, str]] = []
        count = beyond = 0
        for scene in testscenes.TEST_SCENES:
            clean = testscenes.reference_scene(scene, task.size, 0)
            for dose in DOSES:
                frame, defects, others = _exposures(clean, dose, camera)
                restored = task.restore(frame)
                told = f"{scene}, {dose:g} e-/px"
                change = restored[~defects].mean(dtype=np.float64)
                change = float(change / frame[~defects].mean(dtype=np.float64) - 1.0)
                means.append((100.0 * change, told))
                error = tile_standard_error(others, _TILE_PX)
                off = tile_bias(frame, restored, error, defects, _TILE_PX).ravel()
                count += off.size
                beyond += int((np.abs(off) > _TILE_LIMIT).sum())
                tiles.append((float(off[int(np.argmax(np.abs(off)))]), told))
        worst, told = max(means, key=lambda item: abs(item[0]))
        frames = f"{name}, {len(means)} frames"
        yield Row("bias of the mean, %", frames, worst, 0.5, "within", told)
        worst, told = max(tiles, key=lambda item: abs(item[0]))
        where = f"{name}, {count} tiles of {_TILE_PX} px"
        note = f"{told}; {beyond} beyond" if beyond else told
        target = "bias of a tile, standard errors"
        yield Row(target, where, _figure(worst), _TILE_LIMIT, "within", note)


def _exposures(
    clean: Array, dose: float, camera: cameras.Camera
) -> tuple[Array, npt.NDArray[np.bool_], Array]:
    """A frame, its defect pixels, and other frames of the same without defects."""
    sound = dataclasses.replace(camera, defects=0.0, xrays=0.0)
    key = [23, int(1000 * dose)]
    frame, _, _ = cameras.expose(np.random.default_rng([*key, 0]), clean, dose, camera)
    # Defects are the last thing that is drawn: without them the same frame comes out.
    whole, _, _ = cameras.expose(np.random.default_rng([*key, 0]), clean, dose, sound)
    others = [
        cameras.expose(np.random.default_rng([*key, 1 + i]), clean, dose, sound)[0]
        for i in range(_EXPOSURES)
    ]
    return frame, frame != whole, np.stack(others)


def _columns(task: _Task) -> Iterator[Row]:
    """Atom columns against the bound of the raw counts."""
    rows = evaluate_columns.evaluate_columns({"it": task.restore}, size=task.size)
    line = next(row for row in rows if row["method"] == "it")
    where = f"20 e-/px, {line['columns']} columns"

    def row(target: str, key: str, limit: float, minus: float = 0.0, sense: str = "within") -> Row:
        value = line[key]
        return Row(target, where, None if value is None else value - minus, limit, sense)

    yield row("columns: position rms over the bound", "position_ratio", 1.2, 0.0, "at most")
    yield row("columns: intensity rms over the bound", "intensity_ratio", 1.2, 0.0, "at most")
    yield row("columns: bias of the mean intensity", "intensity_bias", 0.02)
    yield row("columns: slope of intensity, minus 1", "slope", 0.05, 1.0)
    dopants = row("columns: slope of the dopants, minus 1", "dopant_slope", 0.05, 1.0)
    filled = line["vacancy_filled"]
    note = "" if filled is None else f"vacancies filled by {100 * filled:.1f} %"
    yield dataclasses.replace(dopants, note=note)
    yield row("columns lost", "lost", 0.0, 0.0, "at most")
    yield row("columns invented", "invented", 0.0, 0.0, "at most")


def _cost(task: _Task) -> Iterator[Row]:
    """Multiplications."""
    gmac = task.restorer.gmac((_GMAC_SIDE, _GMAC_SIDE))
    limit = 10.0 if task.restorer.card.default else 60.0
    kind = "the default" if task.restorer.card.default else "a second restorer"
    note = f"limit of {kind}" if gmac is not None else "not counted"
    yield Row("GMAC", f"{_GMAC_SIDE} x {_GMAC_SIDE} px", gmac, limit, note=note)


SECTIONS: dict[str, Callable[[_Task], Iterator[Row]]] = {
    "scenes": _scenes,
    "bragg": _bragg,
    "pair": _pair,
    "nanoparticles": _nanoparticles,
    "bias": _bias,
    "columns": _columns,
    "cost": _cost,
}
"""Parts of the table, in its order."""


# --------------------------------------------------------------------------------------- the whole


def evaluate_targets(
    restorer: Restorer,
    *,
    sections: Sequence[str] = tuple(SECTIONS),
    size: int = 512,
    pair: Path | None = None,
    counts_per_electron: float = 44.0,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure a restorer against every target.

    Parameters
    ----------
    restorer : Restorer
        What to judge; one with a memory forgets before each frame.
    sections : sequence of str
        Of `SECTIONS`.
    size : int
        Side of the scenes in pixels; the targets are meant for 512.
    pair : Path, optional
        Folder of two successive real frames, see `tem_live.models.real_images.load_pair`.
    counts_per_electron : float
        Gain of the camera that took the pair.
    say : callable, optional
        Told which section is done.

    Returns
    -------
    list of dict
        The attributes of `Row` with ``section``, ``reached`` and ``model``.

    Raises
    ------
    InputError
        An unknown section, a size under 64 or a pair that cannot be read.
    """
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        raise InputError(f"no section is called {unknown[0]!r}; use {', '.join(SECTIONS)}")
    if not 64 <= size <= 4096:
        raise InputError(f"size {size}: give 64 to 4096 pixels")
    if pair is not None and not pair.is_dir():
        raise InputError(f"no folder {pair}")
    if not counts_per_electron > 0.0:
        raise InputError("counts per electron must be above 0")
    task = _Task(evaluate.method_of(restorer), restorer, size, pair, counts_per_electron)
    rows: list[dict[str, Any]] = []
    for name in sections:
        for row in SECTIONS[name](task):
            cells = {"section": name, **dataclasses.asdict(row), "reached": row.reached}
            rows.append({"model": restorer.name, **cells})
        if say is not None:
            say(f"{restorer.name}: {name}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows of `evaluate_targets` as text to print."""
    signs = {"at most": "≤", "at least": "≥", "within": "±"}

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

    return [
        {
            "model": row["model"],
            "target": row["target"],
            "where": row["where"],
            "figure": number(row["figure"]),
            "limit": f"{signs[row['sense']]} {row['limit']:g}",
            "reached": {True: "yes", False: "no", None: "–"}[row["reached"]],
            "note": row["note"],
        }
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tem_live.models.evaluate_targets", description=__doc__
    )
    parser.add_argument("--model", action="append", help="name or path; may be repeated")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), help="of the table")
    parser.add_argument("--size", type=int, default=512, help="side of the scenes in pixels")
    parser.add_argument("--pair", type=Path, help="folder of a real frame pair")
    parser.add_argument("--counts-per-electron", type=float, default=44.0, help="of the pair")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON value as the last line")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    try:
        for name in given.model or [default_restorer()]:
            rows += evaluate_targets(
                load_restorer(name, given.device),
                sections=given.sections,
                size=given.size,
                pair=given.pair,
                counts_per_electron=given.counts_per_electron,
            )
    except TemLiveError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    lines = [list(line.values()) for line in table(rows)]
    head = list(table(rows)[0]) if lines else []
    for cells in [head, ["---"] * len(head), *lines]:
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
    if given.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
