"""Specimens to train on: random clean images of many kinds, NumPy and SciPy only.

Every generator takes a `numpy.random.Generator` and a size and returns a float32 (size, size)
transmitted intensity, positive, in arbitrary units; `random_scene` picks one, mixes it now and
then with another and scales the mean to 1. Large parts of many scenes are empty on purpose: a
restorer learns to invent nothing only where there is nothing.

The scenes that restorers are judged by live in `tem_live.models.testscenes` and share no code
with these.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["GENERATORS", "random_scene"]

Array = npt.NDArray[np.float32]
Rng = np.random.Generator


def _grid(size: int) -> tuple[Array, Array]:
    axis = np.arange(size, dtype=np.float32)
    return axis[:, None], axis[None, :]


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _unit(field: npt.NDArray[np.floating]) -> Array:
    """Scale a field to mean 0, standard deviation 1 (zero where it is constant)."""
    centred = field - field.mean()
    spread = float(centred.std())
    return np.asarray(centred / spread if spread > 1e-12 else centred * 0.0, dtype=np.float32)


def _frequency(size: int) -> npt.NDArray[np.float64]:
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    return np.asarray(np.hypot(fy, fx), dtype=np.float64)


def _filtered_noise(rng: Rng, size: int, transfer: npt.NDArray[np.float64]) -> Array:
    white = rng.standard_normal((size, size), dtype=np.float32)
    return _unit(np.fft.irfft2(np.fft.rfft2(white) * transfer, s=(size, size)))


def _smooth(rng: Rng, size: int, length_px: float) -> Array:
    """Unit-variance Gaussian random field of this correlation length."""
    return _filtered_noise(rng, size, np.exp(-2.0 * (np.pi * length_px * _frequency(size)) ** 2))


def _ramp(rng: Rng, size: int) -> Array:
    """Smooth illumination: a plane plus a bowl, spread about 1."""
    y, x = _grid(size)
    u, v = x / size - 0.5, y / size - 0.5
    a, b, c = rng.normal(0.0, 1.0, 3)
    return np.asarray(a * u + b * v + c * (u * u + v * v), dtype=np.float32)


def _stamp(
    canvas: Array, cy: float, cx: float, reach: float
) -> tuple[Array, npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """View of `canvas` around a point and the offsets of its pixels; None if outside."""
    size = canvas.shape[0]
    y0, y1 = max(int(cy - reach), 0), min(int(cy + reach) + 2, size)
    x0, x1 = max(int(cx - reach), 0), min(int(cx + reach) + 2, size)
    if y0 >= y1 or x0 >= x1:
        return None
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(cy)
    dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(cx)
    return canvas[y0:y1, x0:x1], dy, dx


def _particle_map(rng: Rng, size: int) -> Array:
    """Projected thickness of particles: superellipses and polygons, soft or hard, in clusters."""
    thickness = np.zeros((size, size), dtype=np.float32)
    radius = _log_uniform(rng, 2.0, size / 5.0)
    count = int(np.clip(rng.integers(1, 60), 1, max(2.0, 0.9 * (size / radius) ** 2 / 6.0)))
    clustered = rng.random() < 0.5
    spread = rng.uniform(0.02, 0.6)
    edge = _log_uniform(rng, 0.4, max(0.6, radius / 2))
    polygon = rng.random() < 0.4
    profile = rng.choice([0.0, 0.25, 0.5, 1.0])  # 0: plate; 0.5: ellipsoid; 1: paraboloid
    saturate = rng.random() < 0.3
    py, px = rng.uniform(0, size, 2)
    for _ in range(count):
        if clustered and rng.random() < 0.9:
            step = rng.uniform(0.8, 1.6) * radius
            angle = rng.uniform(0, 2 * np.pi)
            py, px = py + step * np.sin(angle), px + step * np.cos(angle)
            if not (0 <= py < size and 0 <= px < size):
                py, px = rng.uniform(0, size, 2)
        else:
            py, px = rng.uniform(-radius, size + radius, 2)
        r = radius * float(np.exp(rng.normal(0.0, spread)))
        stamp = _stamp(thickness, py, px, 1.6 * r + 3 * edge)
        if stamp is None:
            continue
        view, dy, dx = stamp
        theta = rng.uniform(0, np.pi)
        stretch = float(np.exp(rng.normal(0.0, 0.2)))
        u = (np.cos(theta) * dx + np.sin(theta) * dy) * stretch
        v = (-np.sin(theta) * dx + np.cos(theta) * dy) / stretch
        if polygon:
            corners = int(rng.integers(3, 9))
            angles = theta + 2 * np.pi * np.arange(corners) / corners
            distance = np.max([np.cos(a) * dx + np.sin(a) * dy for a in angles], axis=0)
        else:
            distance = np.sqrt(u * u + v * v)
        inside = 1.0 / (1.0 + np.exp(np.clip((distance - r) / (0.5 * edge), -30, 30)))
        body = np.clip(1.0 - (distance / (r + edge)) ** 2, 0.0, 1.0) ** profile * inside
        body *= r / radius if profile > 0 else rng.uniform(0.5, 1.0)
        if saturate:
            np.maximum(view, body, out=view)
        else:
            view += body
    return thickness


def particles(rng: Rng, size: int) -> Array:
    """Particles with mass-thickness contrast on a faint support film."""
    absorb = _log_uniform(rng, 0.02, 3.0)
    image = np.exp(-absorb * _particle_map(rng, size))
    if rng.random() < 0.5:
        image = image * (1.0 + _log_uniform(rng, 0.002, 0.05) * amorphous_field(rng, size))
    if rng.random() < 0.5:
        image = image * np.exp(rng.uniform(0, 0.3) * _ramp(rng, size))
    return np.asarray(image, dtype=np.float32)


def amorphous_field(rng: Rng, size: int) -> Array:
    """Unit-variance texture of an amorphous film: a broad band, a ring, or Thon rings."""
    f = _frequency(size)
    kind = rng.integers(3)
    if kind == 0:
        transfer = np.exp(-((f / _log_uniform(rng, 0.01, 0.25)) ** 2))
    elif kind == 1:
        centre = _log_uniform(rng, 0.02, 0.3)
        transfer = np.exp(-(((f - centre) / (centre * rng.uniform(0.1, 0.6))) ** 2))
    else:
        rings = np.sin(np.pi * (f / _log_uniform(rng, 0.03, 0.2)) ** 2 + rng.uniform(0, 0.5))
        transfer = np.abs(rings) * np.exp(-((f / rng.uniform(0.08, 0.3)) ** 2))
    return _filtered_noise(rng, size, transfer)


def amorphous(rng: Rng, size: int) -> Array:
    """An amorphous film, thickness varying."""
    contrast = _log_uniform(rng, 0.005, 0.25)
    local = np.exp(rng.uniform(0, 0.5) * _smooth(rng, size, rng.uniform(20, 80)))
    return np.asarray(np.maximum(1 + contrast * local * amorphous_field(rng, size), 0.02))


def _lattice_field(rng: Rng, size: int) -> Array:
    """One crystal: a few plane waves or rows of atoms, strained, with vacancies."""
    y, x = _grid(size)
    if rng.random() < 0.5:
        # A slow displacement field is strain; a branch cut in it is an edge dislocation.
        sy = rng.uniform(0, 2.5) * _smooth(rng, size, rng.uniform(25, 90))
        sx = rng.uniform(0, 2.5) * _smooth(rng, size, rng.uniform(25, 90))
        if rng.random() < 0.3:
            cy, cx = rng.uniform(0, size, 2)
            sx = sx + np.arctan2(y - cy, x - cx) * rng.uniform(2.0, 12.0) / (2 * np.pi)
        yy, xx = y + sy, x + sx
    else:
        yy, xx = y + np.zeros_like(x), x + np.zeros_like(y)
    period = _log_uniform(rng, 2.6, 28.0)
    theta = rng.uniform(0, np.pi)
    gamma = rng.choice([np.pi / 2, np.pi / 3, np.pi / 2.55, rng.uniform(0.9, 1.9)])
    ratio = 1.0 if rng.random() < 0.5 else rng.uniform(1.0, 1.8)
    g1 = np.array([np.sin(theta), np.cos(theta)]) / period
    g2 = np.array([np.sin(theta + gamma), np.cos(theta + gamma)]) / (period * ratio)
    if rng.random() < 0.45 or period < 5:
        field = np.zeros((size, size), dtype=np.float32)
        orders = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2)]
        for i, (h, k) in enumerate(orders[: int(rng.integers(1, 7))]):
            g = h * g1 + k * g2
            if np.hypot(*g) > 0.42:
                continue
            wave = np.cos(2 * np.pi * (g[0] * yy + g[1] * xx) + rng.uniform(0, 2 * np.pi))
            field += (rng.uniform(0.2, 1.0) if i else 1.0) * wave
        return _unit(field)
    # Atom columns: phases of the two reciprocal vectors, a peak per cell and per basis atom.
    p1 = g1[0] * yy + g1[1] * xx
    p2 = g2[0] * yy + g2[1] * xx
    field = np.zeros((size, size), dtype=np.float32)
    sharp = rng.uniform(1.0, 9.0)
    keys = rng.random((64, 64)).astype(np.float32)
    vacancy = rng.choice([0.0, 0.0, 0.02, 0.1])
    spread = rng.choice([0.0, 0.1, 0.4])
    for _ in range(int(rng.integers(1, 4))):
        b1, b2 = rng.random(2)
        q1, q2 = p1 - b1, p2 - b2
        peak = np.exp(sharp * (np.cos(2 * np.pi * q1) + np.cos(2 * np.pi * q2) - 2.0))
        cell = keys[np.rint(q1).astype(np.int64) % 64, np.rint(q2).astype(np.int64) % 64]
        weight = rng.uniform(0.3, 1.0) * (1 + spread * (cell - 0.5)) * (cell >= vacancy)
        field += weight * peak
    return _unit(field)


def _region(rng: Rng, size: int) -> Array:
    """Soft mask of a random part of the frame, 0 to 1."""
    kind = rng.integers(4)
    y, x = _grid(size)
    soft = _log_uniform(rng, 0.5, 12.0)
    if kind == 0:
        theta = rng.uniform(0, 2 * np.pi)
        wavy = rng.uniform(0, 8) * _smooth(rng, size, rng.uniform(8, 40))
        distance = np.sin(theta) * (y - size / 2) + np.cos(theta) * (x - size / 2) + wavy
        distance = distance + rng.uniform(-0.35, 0.35) * size
    elif kind == 1:
        cy, cx = rng.uniform(0.1, 0.9, 2) * size
        stretch = float(np.exp(rng.normal(0, 0.25)))
        distance = np.hypot((y - cy) * stretch, (x - cx) / stretch) - rng.uniform(0.08, 0.5) * size
    elif kind == 2:
        cy, cx = rng.uniform(0.2, 0.8, 2) * size
        angles = rng.uniform(0, 2 * np.pi) + np.sort(rng.uniform(0, 2 * np.pi, 6))
        sides = [np.sin(a) * (y - cy) + np.cos(a) * (x - cx) for a in angles]
        distance = np.max(sides, axis=0) - rng.uniform(0.1, 0.4) * size
    else:
        distance = (_smooth(rng, size, rng.uniform(10, 60)) - rng.normal(0, 0.6)) * 10.0
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(distance / soft, -30, 30))), dtype=np.float32)


def lattice(rng: Rng, size: int) -> Array:
    """Crystals: whole frame, one or two finite grains, with amorphous ground and vacuum."""
    contrast = _log_uniform(rng, 0.03, 0.6)
    mode = rng.integers(3)
    field = _lattice_field(rng, size)
    if mode == 0:
        image = 1 + contrast * field
    else:
        mask = _region(rng, size)
        ground = rng.choice([0.0, 0.05, 0.2]) * contrast * amorphous_field(rng, size)
        if mode == 2:
            ground = ground + contrast * rng.uniform(0, 1) * _lattice_field(rng, size)
            if rng.random() < 0.5:
                ground = ground * _region(rng, size)
        image = 1 + mask * contrast * field + (1 - mask) * ground
        image = image * np.exp(-rng.choice([0.0, rng.uniform(0, 0.6)]) * mask)
    if rng.random() < 0.4:
        image = image * (1 + 0.3 * contrast * amorphous_field(rng, size))
    return np.asarray(np.maximum(image, 0.02), dtype=np.float32)


def holes(rng: Rng, size: int) -> Array:
    """Support film with holes, bars or torn edges, with or without a Fresnel fringe."""
    y, x = _grid(size)
    # More often with holes than with bars or edges: a holey film is what most specimens lie on.
    kind = rng.choice(3, p=(0.5, 0.2, 0.3))
    pitch = _log_uniform(rng, 12, 2.0 * size)
    theta = rng.uniform(0, np.pi)
    u = np.cos(theta) * x + np.sin(theta) * y + rng.uniform(0, pitch)
    v = -np.sin(theta) * x + np.cos(theta) * y + rng.uniform(0, pitch)
    cu, cv = (u + pitch / 2) % pitch - pitch / 2, (v + pitch / 2) % pitch - pitch / 2
    if kind == 0:
        distance = rng.uniform(0.15, 0.45) * pitch - np.hypot(cu, cv)
    elif kind == 1:
        bar = rng.uniform(0.1, 0.4) * pitch
        distance = np.minimum(np.abs(cu), np.abs(cv)) - bar / 2
    else:
        distance = 12.0 * (_smooth(rng, size, rng.uniform(8, 50)) - rng.normal(0, 0.5))
    soft = _log_uniform(rng, 0.4, 4.0)
    inside = 1.0 / (1.0 + np.exp(np.clip(distance / soft, -30, 30)))
    film = rng.choice([rng.uniform(0.0, 0.1), rng.uniform(0.3, 0.97)])
    image = film + (1 - film) * inside
    if rng.random() < 0.4:
        width = rng.uniform(2.0, 8.0)
        image = image * (
            1
            + rng.uniform(0.02, 0.2)
            * np.cos(2 * np.pi * distance / width)
            * np.exp(-((distance / (1.5 * width)) ** 2))
        )
    texture = rng.choice([0.0, 0.01, 0.05]) * amorphous_field(rng, size)
    return np.asarray(np.maximum(image * (1 + texture * (1 - inside)), 0.0), dtype=np.float32)


def dead_leaves(rng: Rng, size: int) -> Array:
    """Overlapping discs and half planes of random grey: the edges of natural images."""
    image = np.full((size, size), rng.uniform(0.5, 1.0), dtype=np.float32)
    small = _log_uniform(rng, 2.0, 12.0)
    textured = rng.random() < 0.5
    for _ in range(int(rng.integers(10, 150))):
        r = small * rng.uniform(0.02, 1.0) ** -0.7
        stamp = _stamp(image, rng.uniform(0, size), rng.uniform(0, size), min(1.8 * r, size))
        if stamp is None:
            continue
        view, dy, dx = stamp
        a, b = np.exp(rng.normal(0, 0.3, 2))
        if rng.random() < 0.3:
            theta = rng.uniform(0, np.pi)
            u, v = np.cos(theta) * dx + np.sin(theta) * dy, np.cos(theta) * dy - np.sin(theta) * dx
            cover = np.clip(r * 0.6 - np.maximum(np.abs(u) * a, np.abs(v) * b) + 0.5, 0, 1)
        else:
            cover = np.clip(r - np.hypot(dx * a, dy * b) + 0.5, 0, 1)
        grey = rng.uniform(0.05, 1.0)
        leaf = grey * (1 + (0.1 * rng.standard_normal() * dx / r if textured else 0.0))
        view *= 1 - cover
        view += cover * leaf
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, _log_uniform(rng, 0.4, 3.0))
    return np.maximum(image, 0.0)


def fractal(rng: Rng, size: int) -> Array:
    """1/f noise, smooth, folded or cut at levels: clouds, ridges, territories."""
    f = _frequency(size)
    f[0, 0] = f[0, 1]
    field = _filtered_noise(rng, size, f ** -rng.uniform(1.0, 2.2))
    kind = rng.integers(3)
    if kind == 1:
        field = _unit(np.abs(field))
    elif kind == 2:
        levels = rng.uniform(0.5, 3.0)
        field = _unit(ndimage.gaussian_filter(np.rint(field * levels), 0.7))
    contrast = _log_uniform(rng, 0.02, 0.4)
    return np.asarray(np.maximum(1 + contrast * field, 0.02), dtype=np.float32)


def grains(rng: Rng, size: int) -> Array:
    """Polycrystal or tissue: Voronoi territories with grey levels, walls and fringes."""
    y, x = _grid(size)
    count = int(_log_uniform(rng, 3, 120))
    points = rng.uniform(-0.1, 1.1, (count, 2)) * size
    warp = rng.uniform(0, 8)
    yy = y + warp * _smooth(rng, size, 20)
    xx = x + warp * _smooth(rng, size, 20)
    first = np.full((size, size), np.inf, dtype=np.float32)
    second = first.copy()
    owner = np.zeros((size, size), dtype=np.int64)
    for i, (cy, cx) in enumerate(points):
        d = np.asarray(np.hypot(yy - cy, xx - cx), dtype=np.float32)
        nearer = d < first
        second = np.where(nearer, first, np.minimum(second, d))
        owner[nearer] = i
        first = np.where(nearer, d, first)
    grey = rng.normal(0, 1, count)[owner] * _log_uniform(rng, 0.02, 0.4)
    gap = second - first
    width = _log_uniform(rng, 1.0, 8.0)
    wall = rng.choice([0.0, rng.uniform(-0.8, 0.8)]) * np.exp(-((gap / width) ** 2))
    image = np.exp(grey - np.abs(wall) if rng.random() < 0.7 else grey + wall)
    if rng.random() < 0.4:
        mask = np.asarray(rng.random(count) < 0.4)[owner]
        image = image * (1 + mask * _log_uniform(rng, 0.02, 0.3) * _lattice_field(rng, size))
    return np.asarray(ndimage.gaussian_filter(image, rng.uniform(0.4, 1.5)), dtype=np.float32)


def curves(rng: Rng, size: int) -> Array:
    """Tubes, fibres and dislocation lines: level sets of smooth fields and straight rods."""
    image = np.ones((size, size), dtype=np.float32)
    y, x = _grid(size)
    for _ in range(int(rng.integers(1, 10))):
        width = _log_uniform(rng, 1.0, 12.0)
        if rng.random() < 0.5:
            theta = rng.uniform(0, np.pi)
            offset = rng.uniform(-0.6, 0.6) * size
            bend = rng.uniform(0, 15) * _smooth(rng, size, rng.uniform(30, 90))
            distance = np.abs(
                np.cos(theta) * (x - size / 2) + np.sin(theta) * (y - size / 2) + bend - offset
            )
        else:
            field = _smooth(rng, size, rng.uniform(10, 50))
            gy, gx = np.gradient(field)
            steep = np.hypot(gy, gx) + 0.2 * float(np.hypot(gy, gx).mean())
            distance = np.abs(field - rng.normal(0, 1)) / steep
        depth = _log_uniform(rng, 0.02, 0.6)
        if rng.random() < 0.35:
            profile = np.exp(-(((distance - width) / (0.35 * width + 0.6)) ** 2))
        else:
            profile = 1.0 / (1.0 + np.exp(np.clip((distance - width) / 0.7, -30, 30)))
        image *= 1 - depth * profile
    return np.asarray(image, dtype=np.float32)


def fringes(rng: Rng, size: int) -> Array:
    """Interference: hologram fringes bent by a phase object, moire of two."""
    y, x = _grid(size)
    image = np.ones((size, size), dtype=np.float32)
    for _ in range(int(rng.integers(1, 3))):
        period = _log_uniform(rng, 3.0, 40.0)
        theta = rng.uniform(0, np.pi)
        phase = rng.uniform(0, 4.0) * _particle_map(rng, size)
        phase = phase + rng.uniform(0, 2.0) * _smooth(rng, size, rng.uniform(20, 80))
        carrier = 2 * np.pi * (np.cos(theta) * x + np.sin(theta) * y) / period
        visibility = np.full((1, 1), _log_uniform(rng, 0.03, 0.8), dtype=np.float32)
        if rng.random() < 0.5:
            visibility = visibility * _region(rng, size)
        image = image * (1 + visibility * np.cos(carrier + phase))
    return np.asarray(np.maximum(image, 0.0), dtype=np.float32)


def empty(rng: Rng, size: int) -> Array:
    """Nothing, or nothing but uneven light, an edge of the beam or a single small particle."""
    kind = rng.integers(4)
    image = np.ones((size, size), dtype=np.float32)
    if kind == 1:
        image = np.exp(rng.uniform(0, 0.8) * _ramp(rng, size))
    elif kind == 2:
        image = rng.uniform(0, 0.2) + _region(rng, size)
    elif kind == 3:
        cy, cx = rng.uniform(0, size, 2)
        y, x = _grid(size)
        r = _log_uniform(rng, 1.5, 20.0)
        image = image - rng.uniform(0.05, 0.8) * np.exp(
            -((np.hypot(y - cy, x - cx) / r) ** rng.choice([2.0, 6.0]))
        )
    return np.asarray(image, dtype=np.float32)


def cryo(rng: Rng, size: int) -> Array:
    """Weak-phase blobs in ice: many similar objects of low contrast seen through a CTF."""
    field = np.zeros((size, size), dtype=np.float32)
    radius = _log_uniform(rng, 4.0, 30.0)
    motif = [(*rng.normal(0, 0.45, 2), rng.uniform(0.2, 0.6)) for _ in range(rng.integers(2, 8))]
    for _ in range(int(rng.integers(1, 40))):
        cy, cx = rng.uniform(0, size, 2)
        stamp = _stamp(field, cy, cx, 2.2 * radius)
        if stamp is None:
            continue
        view, dy, dx = stamp
        theta = rng.uniform(0, 2 * np.pi)
        c, s = np.cos(theta), np.sin(theta)
        for my, mx, w in motif:
            oy, ox = radius * (c * my + s * mx), radius * (c * mx - s * my)
            view += np.exp(-((dy - oy) ** 2 + (dx - ox) ** 2) / (w * radius) ** 2)
    field = field + rng.uniform(0, 0.3) * rng.standard_normal((size, size), dtype=np.float32)
    f = _frequency(size)
    ctf = np.sin(np.pi * (f / _log_uniform(rng, 0.03, 0.12)) ** 2 + rng.uniform(0.07, 0.5))
    ctf = ctf * np.exp(-((f / rng.uniform(0.08, 0.25)) ** 2))
    seen = np.fft.irfft2(np.fft.rfft2(field) * ctf, s=(size, size))
    image = 1 - _log_uniform(rng, 0.01, 0.15) * _unit(seen)
    if rng.random() < 0.4:
        image = image * np.exp(rng.uniform(0, 0.4) * _ramp(rng, size))
    return np.asarray(np.maximum(image, 0.02), dtype=np.float32)


GENERATORS: dict[str, tuple[Callable[[Rng, int], Array], float]] = {
    "particles": (particles, 0.19),
    "lattice": (lattice, 0.22),
    "amorphous": (amorphous, 0.07),
    "holes": (holes, 0.14),
    "dead_leaves": (dead_leaves, 0.09),
    "fractal": (fractal, 0.05),
    "grains": (grains, 0.08),
    "curves": (curves, 0.08),
    "fringes": (fringes, 0.05),
    "empty": (empty, 0.03),
    "cryo": (cryo, 0.06),
}
"""Generator and probability of each kind of scene."""


def random_scene(rng: Rng, size: int = 256) -> Array:
    """Return one clean scene, float32 (size, size), mean 1, nowhere negative."""
    names = list(GENERATORS)
    weights = np.array([GENERATORS[n][1] for n in names])
    weights /= weights.sum()
    image = GENERATORS[str(rng.choice(names, p=weights))][0](rng, size)
    if rng.random() < 0.15:
        other = GENERATORS[str(rng.choice(names, p=weights))][0](rng, size)
        other = other / max(float(other.mean()), 1e-6)
        mask = _region(rng, size)
        image = image * (mask * other + 1 - mask)
    if rng.random() < 0.1:
        image = ndimage.gaussian_filter(image, _log_uniform(rng, 0.5, 2.0))
    image = np.maximum(image, 0.0)
    mean = float(image.mean())
    if not np.isfinite(mean) or mean < 1e-3:
        return np.ones((size, size), dtype=np.float32)
    return np.asarray(np.minimum(image / mean, 60.0), dtype=np.float32)
