"""A convolution in C: 32-bit integers and gemmlowp's functions, as TFLite's reference has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.oracle.integers.judge import judge_numbers
from tests.integer.networks import chain, images

# After gemmlowp/fixedpoint/fixedpoint.h and tensorflow/lite/kernels/internal/reference.
SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
static int32_t high_mul(int32_t a, int32_t b) {
  if (a == b && a == INT32_MIN) return INT32_MAX;
  int64_t ab = (int64_t)a * b;
  int32_t nudge = ab >= 0 ? (1 << 30) : (1 - (1 << 30));
  return (int32_t)((ab + nudge) / (1ll << 31));
}
static int32_t divide_by_pot(int32_t x, int exponent) {
  int32_t mask = (int32_t)((1ll << exponent) - 1), remainder = x & mask;
  int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> exponent) + (remainder > threshold ? 1 : 0);
}
int main(int argc, char **argv) {
  int N, C, H, W, O, G, S, zx, zy, low, high;
  FILE *f = fopen(argv[1], "rb");
  int32_t head[11];
  fread(head, 4, 11, f);
  N = head[0]; C = head[1]; H = head[2]; W = head[3]; O = head[4]; G = head[5]; S = head[6];
  zx = head[7]; zy = head[8]; low = head[9]; high = head[10];
  static int8_t x[1 << 20], w[1 << 20];
  static int32_t b[4096], q[4096], shift[4096];
  fread(x, 1, N * C * H * W, f); fread(w, 1, O * (C / G) * 9, f);
  fread(b, 4, O, f); fread(q, 4, O, f); fread(shift, 4, O, f);
  fclose(f);
  int Ho = (H - 1) / S + 1, Wo = (W - 1) / S + 1;
  f = fopen(argv[2], "wb");
  for (int n = 0; n < N; n++) for (int o = 0; o < O; o++)
    for (int y = 0; y < Ho; y++) for (int z = 0; z < Wo; z++) {
      int32_t sum = b[o];
      int first = o / (O / G) * (C / G);
      for (int c = 0; c < C / G; c++) for (int i = 0; i < 3; i++) for (int j = 0; j < 3; j++) {
        int r = y * S - 1 + i, t = z * S - 1 + j;
        if (r < 0 || r >= H || t < 0 || t >= W) continue;
        sum += w[((o * (C / G) + c) * 3 + i) * 3 + j]
             * (x[((n * C + first + c) * H + r) * W + t] - zx);
      }
      int left = shift[o] < 0 ? -shift[o] : 0, right = shift[o] > 0 ? shift[o] : 0;
      int32_t v = divide_by_pot(high_mul(sum * (1 << left), q[o]), right) + zy;
      int8_t out = (int8_t)(v < low ? low : v > high ? high : v);
      fwrite(&out, 1, 1, f);
    }
  return fclose(f);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("witness")
    (folder / "conv.c").write_text(SOURCE)
    subprocess.run([compiler, "-O2", "-w", "conv.c", "-o", "conv"], cwd=folder, check=True)
    return folder / "conv"


def test_double_is_what_gemmlowps_functions_give_in_c(program: Path) -> None:
    network: IntegerNetwork = chain(seed=7, rounding="double", head=False)
    x = images(network, seed=7)
    numbers = {"input": x}
    for layer in network.layers:
        held = layer.scaling()
        limits = np.iinfo(np.int8)
        zero_in, zero_out = int(layer.input.zero_point), int(layer.output.zero_point)
        low = zero_out if layer.relu else limits.min
        head = [
            *x.shape,
            layer.out_channels,
            layer.groups,
            layer.stride,
            zero_in,
            zero_out,
            low,
            127,
        ]
        parts = [
            np.array(head, np.int32),
            x,
            layer.weight,
            layer.bias,
            held.multiplier.astype(np.int32),
            held.shift.astype(np.int32),
        ]
        case, answer = program.parent / "case", program.parent / "answer"
        case.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
        subprocess.run([str(program), str(case), str(answer)], check=True)
        Ho, Wo = ((n - 1) // layer.stride + 1 for n in x.shape[2:])
        y = np.fromfile(answer, np.int8).reshape(len(x), -1, Ho, Wo)
        np.testing.assert_array_equal(y, layer.forward(x, "double"), err_msg=layer.name)
        numbers[layer.name] = x = y
    report = judge_numbers(network.rounded("any"), numbers, reference="ours", candidate="C")
    assert (report.verdict, report.schemes[0]) == ("agree", "double")
