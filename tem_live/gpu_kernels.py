"""Calibration on a GPU in one pass: counts to electrons, X-ray hits taken out on the way.

What is done to a pixel is written once, in C++ that a CUDA compiler and an ordinary one both take:
CuPy compiles it for the GPU when it is first used, and the tests compile it for the processor and
compare it with `tem_live.calibration.Calibrator` on NumPy, which is the reference. Its speed on a
GPU has not been measured.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["PIXEL_SOURCE", "calibrate"]

PIXEL_SOURCE = r"""
// A reference that is one number for all pixels has the step 0, one for each pixel the step 1.
template <typename Counts, typename Reference>
__device__ float electrons_at(const Counts &counts, const Reference &dark, int dark_step,
                              const Reference &scale, int scale_step, long long i) {
    return ((float)counts[i] - dark[i * dark_step]) * scale[i * scale_step];
}

// Far above the whole frame and far above the median of its neighbours: that median instead.
// The neighbours are read from the counts, so that no pixel waits for another.
template <typename Counts, typename Reference>
__device__ float calibrated(const Counts &counts, const Reference &dark, int dark_step,
                            const Reference &scale, int scale_step, float limit, float sigma,
                            int height, int width, long long i) {
    float value = electrons_at(counts, dark, dark_step, scale, scale_step, i);
    if (!(sigma > 0.0f) || !(value > limit)) return value;
    int y = (int)(i / width), x = (int)(i % width);
    float around[8];
    int n = 0;
    for (int dy = -1; dy <= 1; ++dy) {
        for (int dx = -1; dx <= 1; ++dx) {
            if (dy == 0 && dx == 0) continue;
            int yy = min(max(y + dy, 0), height - 1), xx = min(max(x + dx, 0), width - 1);
            float other = electrons_at(counts, dark, dark_step, scale, scale_step,
                                       (long long)yy * width + xx);
            int at = n++;
            for (; at > 0 && around[at - 1] > other; --at) around[at] = around[at - 1];
            around[at] = other;
        }
    }
    float middle = 0.5f * (around[3] + around[4]);
    return value > middle + sigma * sqrtf(fmaxf(middle, 1.0f)) ? middle : value;
}
"""
"""`calibrated` gives the electrons of pixel ``i`` of a frame; any indexable type will do."""


def calibrate(xp: Any, raw: Any, dark: Any, scale: Any, out: Any, xray_sigma: float) -> None:
    """Calibrate one frame without waiting for the GPU.

    Parameters
    ----------
    xp : module
        ``cupy`` or its array-api-compat namespace.
    raw : cupy.ndarray (H, W), any real dtype
        Counts.
    dark, scale : cupy.ndarray float32, (H, W) or (1,)
        Dark level in counts, electrons per count.
    out : cupy.ndarray (H, W) float32
        Electrons per pixel.
    xray_sigma : float
        Threshold for X-ray hits in standard deviations of the frame; 0 switches them off.
    """
    height, width = raw.shape
    limit = xp.zeros((), dtype=xp.float32)
    if xray_sigma > 0:
        # The threshold comes from one pixel in sixteen, and stays on the GPU.
        some = raw[::4, ::4].astype(xp.float32)
        some -= dark[::4, ::4] if dark.ndim == 2 else dark
        some *= scale[::4, ::4] if scale.ndim == 2 else scale
        limit = some.mean() + xp.float32(xray_sigma) * some.std()
    _kernel()(
        raw,
        dark.reshape(-1),
        int(dark.ndim == 2),
        scale.reshape(-1),
        int(scale.ndim == 2),
        limit.astype(xp.float32),
        xray_sigma,
        height,
        width,
        out,
    )


@functools.cache
def _kernel() -> Any:
    import cupy

    return cupy.ElementwiseKernel(
        "raw T counts, raw float32 dark, int32 dark_step, raw float32 scale, int32 scale_step, "
        "float32 limit, float32 sigma, int32 height, int32 width",
        "float32 out",
        "out = calibrated(counts, dark, dark_step, scale, scale_step, limit, sigma, "
        "height, width, i)",
        "tem_live_calibrate",
        preamble=PIXEL_SOURCE,
    )
