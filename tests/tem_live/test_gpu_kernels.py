"""The GPU's arithmetic, compiled for the processor, against the reference on NumPy."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from tem_live.calibration import Calibrator
from tem_live.gpu_kernels import PIXEL_SOURCE

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
SHAPE = (61, 47)

HARNESS = (
    "#include <algorithm>\n#include <cmath>\nusing std::min; using std::max;\n"
    "#define __device__\n"
    + PIXEL_SOURCE
    + """
extern "C" void frame(const unsigned short *counts, const float *dark, int dark_step,
                      const float *scale, int scale_step, float limit, float sigma,
                      int height, int width, float *out) {
    for (long long i = 0; i < (long long)height * width; ++i)
        out[i] = calibrated(counts, dark, dark_step, scale, scale_step, limit, sigma,
                            height, width, i);
}
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(HARNESS)
    built = folder / "kernel.so"
    command = [COMPILER, "-O1", "-shared", "-fPIC", "-o", str(built), str(folder / "kernel.cpp")]
    subprocess.run(command, check=True, capture_output=True)
    function = ctypes.CDLL(str(built)).frame

    def pointer(array):
        return array.ctypes.data_as(ctypes.c_void_p)

    def calibrate(counts, dark, scale, limit, sigma):
        out = np.full(counts.shape, np.nan, np.float32)
        dark, scale = np.atleast_1d(np.float32(dark)), np.atleast_1d(np.float32(scale))
        function(
            pointer(counts), pointer(dark), int(dark.ndim == 2), pointer(scale),
            int(scale.ndim == 2), ctypes.c_float(limit), ctypes.c_float(sigma),
            *counts.shape, pointer(out),
        )  # fmt: skip
        return out

    return calibrate


def counts_with_hits() -> np.ndarray:
    counts = (100 + 40 * np.random.default_rng(3).poisson(5.0, SHAPE)).astype(np.uint16)
    # In the middle, at an edge, in a corner, and two side by side.
    for place in ((30, 20), (0, 9), (60, 46), (12, 12), (12, 13)):
        counts[place] = 60000
    return counts


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 8.0])
def test_the_kernel_gives_what_numpy_gives(run, references, sigma):
    rng = np.random.default_rng(4)
    counts = counts_with_hits()
    dark = rng.normal(100, 2, SHAPE).astype(np.float32) if references else None
    gain = rng.normal(1, 0.03, SHAPE).astype(np.float32) if references else None
    reference = Calibrator(np, SHAPE, 40.0, 100.0, dark, gain, False, sigma)
    right = reference.apply(counts, np.zeros(SHAPE, np.float32))
    plain = Calibrator(np, SHAPE, 40.0, 100.0, dark, gain, False)
    some = plain.apply(counts, np.zeros(SHAPE, np.float32))[::4, ::4]
    limit = some.mean() + sigma * some.std()
    mine = run(counts, 100.0 if dark is None else dark, reference._scale, limit, sigma)
    np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5)
    assert (mine.max() < 100.0) == (sigma > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
def test_cupy_gives_what_numpy_gives(references, dtype):
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    import array_api_compat.cupy as xp

    rng = np.random.default_rng(4)
    counts = np.minimum(counts_with_hits(), 250 if dtype is np.uint8 else 30000).astype(dtype)
    dark = rng.normal(100, 2, SHAPE).astype(np.float32) if references else None
    gain = rng.normal(1, 0.03, SHAPE).astype(np.float32) if references else None
    arguments = (SHAPE, 40.0, 100.0, dark, gain, False, 8.0)
    right = Calibrator(np, *arguments).apply(counts, np.zeros(SHAPE, np.float32))
    out = cupy.zeros(SHAPE, cupy.float32)
    Calibrator(xp, *arguments).apply(cupy.asarray(counts), out)
    np.testing.assert_allclose(cupy.asnumpy(out), right, rtol=1e-4, atol=1e-4)
