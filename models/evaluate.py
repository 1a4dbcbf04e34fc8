"""Score restorers against baselines on scenes whose truth is known, and on a real pair.

``tem-live evaluate`` prints what is found here. Figures are those of `tem_live.models.scores`, the
scenes those of `tem_live.models.testscenes`, which no training uses, with fixed seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tem_live.errors import InputError
from tem_live.models import cameras, evaluate_columns, scores, testscenes
from tem_live.models.blurs import best_gaussian
from tem_live.models.classical import bm3d_restore, nlm_restore
from tem_live.models.evaluate_pair import evaluate_pair
from tem_live.models.evaluate_picture import Picture
from tem_live.models.real_images import load_pair, load_references
from tem_live.models.restorers import Restorer, load_restorer

__all__ = [
    "BASELINES",
    "CAMERAS",
    "Options",
    "check",
    "evaluate",
    "evaluate_scenes",
    "method_of",
    "methods_of",
    "summarise",
    "tables",
]

Array = npt.NDArray[np.float32]
Method = Callable[[Array], Array]
Show = Callable[[str, dict[str, Array]], None]

CAMERAS: dict[str, cameras.Camera] = {
    "poisson": cameras.Camera(),
    "cmos": cameras.Camera(
        excess=1.5, read_e=1.2, blur_px=0.3, streak=0.1, streak_px=30.0, clip=True
    ),
}
"""Cameras to test with: an ideal counting one and an integrating one with streaks and clipping."""

BASELINES = ("raw", "best-gaussian", "nlm", "bm3d")
"""What restorers are compared with; the best Gaussian is chosen with the truth."""


@dataclass(frozen=True)
class Options:
    """What to evaluate.

    Attributes
    ----------
    models : tuple of str
        Restorers, by name or path.
    baselines : tuple of str
        Of `BASELINES`.
    doses : tuple of float
        Electrons per pixel.
    cameras : tuple of str
        Of `CAMERAS`.
    size : int
        Side of the scenes in pixels.
    seeds : tuple of int
        A scene and its noise for each.
    scenes : tuple of str
        Of `testscenes.TEST_SCENES`.
    references : Path or None
        Folder of clean images to thin instead of the scenes.
    pair : Path or None
        Folder of two successive real frames, ``frame_1.tif`` and ``frame_2.tif``.
    counts_per_electron : float
        Gain of the camera that took the pair.
    device : str
        "auto", "cpu" or "cuda".
    picture : Path or None
        PNG to write, see `evaluate`.
    columns : bool
        Score atom columns instead of the scenes, see `tem_live.models.evaluate_columns`.
    """

    models: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ("raw", "best-gaussian")
    doses: tuple[float, ...] = (1.0, 5.0, 20.0)
    cameras: tuple[str, ...] = ("poisson", "cmos")
    size: int = 512
    seeds: tuple[int, ...] = (0,)
    scenes: tuple[str, ...] = tuple(testscenes.TEST_SCENES)
    references: Path | None = None
    pair: Path | None = None
    counts_per_electron: float = 1.0
    device: str = "auto"
    picture: Path | None = None
    columns: bool = False


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def evaluate_scenes(
    methods: dict[str, Method],
    *,
    doses: Sequence[float] = (1.0, 5.0, 20.0),
    camera: str = "poisson",
    size: int = 512,
    seeds: Sequence[int] = (0,),
    references: dict[str, Array] | None = None,
    names: Sequence[str] = tuple(testscenes.TEST_SCENES),
    baselines: Sequence[str] = (),
    show: Show | None = None,
) -> list[dict[str, Any]]:
    """Score methods on scenes thinned to known doses.

    Parameters
    ----------
    methods : dict of str to callable
        Each takes and returns float32 (H, W) in electrons.
    doses : sequence of float
        Electrons per pixel.
    camera : str
        Key of `CAMERAS`.
    size : int
        Side of the scenes in pixels.
    seeds : sequence of int
        A scene and its noise for each.
    references : dict of str to ndarray, optional
        Clean images to use instead of the test scenes; mean 1.
    names : sequence of str
        Test scenes to use.
    baselines : sequence of str
        "raw" and "best-gaussian" get rows of their own if they are named here.
    show : callable, optional
        Called for each dose and scene with a caption and the images by method, the truth first.

    Returns
    -------
    list of dict
        A row for each method, dose and scene with ``error_ratio``, ``dose_gain``, ``psnr_db``
        (peak: range of the truth), ``psnr_max_db`` (peak: maximum of the truth), ``ssim``,
        ``frc_px`` (period), ``bias`` (mean restored over mean raw, minus 1), ``invented`` (texture
        in empty areas over the mean), all in `tem_live.models.scores`, and ``seconds``. A figure
        that does not exist is None.
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        clean = references or {n: testscenes.reference_scene(n, size, seed) for n in names}
        for scene, image in clean.items():
            for dose in doses:
                rng = np.random.default_rng([seed, int(dose * 1000), sum(map(ord, scene))])
                frame, truth, _ = cameras.expose(rng, image, dose, CAMERAS[camera])
                blurred, sigma = best_gaussian(truth, frame)
                floor, raw = scores.mse(truth, blurred), scores.mse(truth, frame)
                images = {"truth": truth, "raw": frame, "best-gaussian": blurred}
                seconds: dict[str, float] = {}
                for method, restore in methods.items():
                    started = time.perf_counter()
                    images[method] = restore(frame)
                    seconds[method] = time.perf_counter() - started
                for method in [b for b in ("raw", "best-gaussian") if b in baselines] + [*methods]:
                    restored = images[method]
                    error = scores.mse(truth, restored)
                    rows.append(
                        {
                            "method": method,
                            "scene": scene,
                            "seed": seed,
                            "camera": camera,
                            "dose_e_per_px": dose,
                            "error_ratio": _figure(error / floor),
                            "dose_gain": _figure(raw / error if error > 0.0 else math.inf),
                            "gaussian_gain": raw / floor,
                            "gaussian_sigma_px": sigma,
                            "psnr_db": _figure(scores.psnr_db(truth, restored)),
                            "psnr_max_db": _figure(scores.psnr_db(truth, restored, "max")),
                            "ssim": _figure(scores.ssim(truth, restored)),
                            "frc_px": _figure(scores.frc_period_px(truth, restored)),
                            "invented": _figure(scores.invented_texture(truth, restored)),
                            "bias": _figure(float(restored.mean() / frame.mean() - 1.0)),
                            "seconds": seconds.get(method, 0.0),
                        }
                    )
                if show is not None:
                    show(f"{scene} {dose:g} e-/px", images)
    return rows


def _figure(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(pair: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {key: _figure(value) for key, value in row.items()} for name, row in pair.items()}


def _mean(rows: Sequence[dict[str, Any]], key: str, of: Callable[..., Any]) -> float | None:
    """`of` the figures that exist, None where there is none."""
    values = [row[key] for row in rows if row[key] is not None]
    return float(of(values)) if values else None


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the scenes, a row for each method, camera and dose.

    Geometric means of ratios, arithmetic ones of PSNR, SSIM and period; of ``bias`` and
    ``invented`` the worst scene.
    """
    keys = sorted({(r["method"], r["camera"], r["dose_e_per_px"]) for r in rows})
    out = []
    for method, camera, dose in keys:
        some = [
            r
            for r in rows
            if (r["method"], r["camera"], r["dose_e_per_px"]) == (method, camera, dose)
        ]
        worst = max(some, key=lambda r: float(r["error_ratio"] or 0.0))
        out.append(
            {
                "method": method,
                "camera": camera,
                "dose_e_per_px": dose,
                "scenes": len(some),
                "error_ratio": _mean(some, "error_ratio", _geometric),
                "error_ratio_worst": worst["error_ratio"],
                "worst_scene": worst["scene"],
                "dose_gain": _mean(some, "dose_gain", _geometric),
                "psnr_db": _mean(some, "psnr_db", np.mean),
                "psnr_max_db": _mean(some, "psnr_max_db", np.mean),
                "ssim": _mean(some, "ssim", np.mean),
                "frc_px": _mean(some, "frc_px", np.mean),
                "invented": _mean(some, "invented", max),
                "bias": _mean(some, "bias", lambda values: max(values, key=abs)),
                "seconds": float(np.median([r["seconds"] for r in some])),
            }
        )
    return out


def method_of(restorer: Restorer) -> Method:
    """The restorer as a function of single frames: one with a memory forgets before each."""
    forget = getattr(restorer, "reset", None)

    def restore(frame: Array) -> Array:
        if forget is not None:
            forget()
        return np.asarray(restorer.restore(frame), dtype=np.float32)

    return restore


def methods_of(options: Options) -> dict[str, Method]:
    """Load the restorers and the baselines that are methods of their own, by name."""
    methods: dict[str, Method] = {}
    for given in options.models:
        restorer = load_restorer(given, options.device)
        # "gaussian" is what the best one is called in the figures of a pair.
        name = "gaussian-2px" if restorer.name == "gaussian" else restorer.name
        methods[given if name in methods else name] = method_of(restorer)
    for name, restore in (("nlm", nlm_restore), ("bm3d", bm3d_restore)):
        if name in options.baselines:
            methods[name] = restore
    return methods


def check(options: Options) -> None:
    """Raise `InputError` for what cannot be evaluated, before anything is computed."""
    for word, given, known in (
        ("baseline", options.baselines, BASELINES),
        ("camera", options.cameras, tuple(CAMERAS)),
        ("scene", options.scenes, tuple(testscenes.TEST_SCENES)),
    ):
        wrong = [name for name in given if name not in known]
        if wrong:
            raise InputError(f"no {word} is called {wrong[0]!r}; use {', '.join(known)}")
    if not options.doses or not all(0.0 < dose < 1e6 for dose in options.doses):
        raise InputError("doses must be electrons per pixel above 0, such as 1,5,20")
    if not options.cameras or not options.seeds or not options.scenes:
        raise InputError("name at least one camera, one seed and one scene")
    if min(options.seeds) < 0:
        raise InputError("seeds must be 0 or more")
    if not 32 <= options.size <= 8192:
        raise InputError(f"size {options.size}: give 32 to 8192 pixels")
    if not options.counts_per_electron > 0.0:
        raise InputError("counts per electron must be above 0")
    for folder in (options.references, options.pair):
        if folder is not None and not folder.is_dir():
            raise InputError(f"no folder {folder}")
    picture = options.picture
    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"{picture}: pictures are written as .png")
    if picture is not None and not picture.parent.is_dir():
        raise InputError(f"no folder {picture.parent} to write {picture.name} to")


def evaluate(options: Options, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Score restorers and baselines.

    Parameters
    ----------
    options : Options
        What to evaluate.
    say : callable, optional
        Told what has been done, one line at a time.

    Returns
    -------
    dict
        ``summary`` (see `summarise`), ``rows`` (see `evaluate_scenes`), ``pair`` (see
        `evaluate_pair`; None without one), ``columns`` (rows of
        `tem_live.models.evaluate_columns.evaluate_columns`, None where not asked for; the scenes
        are then left out) and ``picture``: None, or its ``path``, ``columns`` and ``rows``. It
        shows the middle of each scene at each dose, with the first camera and seed, all in the grey
        levels of the truth.

    Raises
    ------
    InputError
        Something in `options` is unknown or missing.
    """
    check(options)
    methods = methods_of(options)
    references = load_references(options.references) if options.references else None
    frames = load_pair(options.pair, options.counts_per_electron) if options.pair else None
    if options.columns:
        found = evaluate_columns.evaluate_columns(
            methods, doses=options.doses, size=options.size, seeds=options.seeds, say=say
        )
        return {"summary": [], "rows": [], "pair": None, "columns": found, "picture": None}
    picture = Picture()
    rows: list[dict[str, Any]] = []
    for camera in options.cameras:
        for seed in options.seeds:
            shown = (camera, seed) == (options.cameras[0], options.seeds[0])

            def show(
                caption: str,
                images: dict[str, Array],
                camera: str = camera,
                shown: bool = shown,
            ) -> None:
                if say is not None:
                    say(f"{camera}, {caption}")
                if shown and options.picture:
                    picture.add(caption, images)

            rows += evaluate_scenes(
                methods,
                doses=options.doses,
                camera=camera,
                size=options.size,
                seeds=[seed],
                references=references,
                names=options.scenes,
                baselines=options.baselines,
                show=show,
            )
    return {
        "summary": summarise(rows),
        "rows": rows,
        "pair": None if frames is None else _plain(evaluate_pair(methods, *frames)),
        "columns": None,
        "picture": picture.write(options.picture) if options.picture else None,
    }


def tables(report: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The figures of `evaluate` as text to print: one table of the scenes, one of the pair."""

    def text(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    scenes = [
        {
            "method": row["method"],
            "camera": row["camera"],
            "e-/px": text(row["dose_e_per_px"], "g"),
            "error ratio": text(row["error_ratio"], ".3f"),
            "worst": f"{text(row['error_ratio_worst'], '.2f')} {row['worst_scene']}",
            "dose gain": text(row["dose_gain"], ".1f"),
            "PSNR dB": text(row["psnr_db"], ".1f"),
            "SSIM": text(row["ssim"], ".3f"),
            "FRC px": text(row["frc_px"], ".1f"),
            "invented": text(row["invented"], ".4f"),
            "bias": text(row["bias"], "+.4f"),
            "s/frame": text(row["seconds"], ".2f"),
        }
        for row in report["summary"]
    ]
    pair = [
        {
            "method": name,
            "error e-²": text(row["error_e2"], ".3f"),
            "under Gaussian": text(row["below_gaussian_e2"], ".3f"),
            "varies": text(row["varies_e2"], ".3f"),
            "common": f"{text(row['common_e2'], '.3f')} ± {text(row['common_se_e2'], '.3f')}",
            "texture": text(row["texture"], ".3f"),
            "bias": text(row["bias"], "+.4f"),
        }
        for name, row in (report["pair"] or {}).items()
    ]
    columns = evaluate_columns.table(report["columns"] or [])
    return [table for table in (scenes, pair, columns) if table]
