"""Winograd's convolution that keeps no transformed weights: they are made in cache, in every run.

Transformed weights are t * t / 9 times the kernels: of a layer of 512 channels F(7, 3) has 85 MB,
which come from memory anew each time. Here the kernels are laid out by tap, and a worker makes of
them what a few positions and a few outputs need,

    U_p = sum over taps of (G (x) G)_(p, tap) g_tap    (some, C width) = (some, 9) @ (9, C width)

multiplies by it while it is in its second-level cache, and makes the next in its place. U is made
in the arithmetic of the network, not in float64 as weights that are kept: that is twice as fast,
and what it adds to the error is lost among the transforms of the input
(`tests/studies/NOTES-cpu.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.gemm import IN_PLACE_LIMIT, panel_products
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.convolution.schedule import Block, Task
from repvgg_ref.cpu.convolution.winograd import WinogradConvolution, transforms
from repvgg_ref.cpu.workers.pool import Stage, Step, prepared

PIECE_NUMBERS = 150_000  # transformed weights that are there at once, at most: 600 kB of float32
TAPS = 9


class _Scratch(NamedTuple):
    """That of a block, as `winograd.Scratch`, and beside it what is made of the kernels."""

    rows: Array
    v: Array
    m: Array
    sums: Array
    kernels: Array  # (panels, runs of channels, 9, channels of a run, width)
    u: Array  # (workers, t, C/G, width)


class StreamedWinograd(WinogradConvolution):
    """F(m, 3) with stride 1; its packed weights are the kernels themselves."""

    def _panel_width(self) -> int:
        most = max(1, PIECE_NUMBERS // (self.tiling.t * self.inner))
        return _divisor(self.shape.outputs // self.shape.groups, most)

    @property
    def _kernels(self) -> tuple[int, ...]:
        """The shape of the kernels by tap; of a run the transform is done in place (`gemm`)."""
        run = _divisor(self.inner, max(1, IN_PLACE_LIMIT // (TAPS * self.tiling.t * self.width)))
        return self.shape.outputs // self.width, self.inner // run, TAPS, run, self.width

    @property
    def _pieces(self) -> tuple[int, ...]:
        return self.threads, self.tiling.t, self.inner, self.width

    def _scratch_numbers(self, strips: int) -> int:
        beside = np.prod(self._kernels) + np.prod(self._pieces)
        return super()._scratch_numbers(strips) + int(beside)

    def _lay(self, arena: Array, task: Task, strips: range) -> Any:
        rest = arena[super()._scratch_numbers(self.block) :]
        kernels = carve(rest, self._kernels)
        u = carve(rest[kernels.size :], self._pieces)
        return _Scratch(*super()._lay(arena, task, strips), kernels, u)

    def _together(self, block: Block) -> Iterator[Stage]:
        """As for weights that are kept, after the kernels are laid out."""
        kernels = block.scratch.kernels
        _, runs, _, run, width = kernels.shape

        def lay_out(worker: int, panel: int) -> list[Step]:
            rows = self._kept[panel * width : (panel + 1) * width]
            by_tap = rows.reshape(width, runs, run, TAPS).transpose(1, 3, 2, 0)
            return [partial(np.copyto, kernels[panel], by_tap)]

        yield prepared(len(kernels), lay_out)
        yield from super()._together(block)

    def _product(self, worker: int, block: Block, parts: range) -> list[Step]:
        """Step 3 for some positions: weights of few of them and of few outputs, then the next."""
        v, m = self._by_group(block)
        t, (panels, runs, _, _, width) = self.tiling.t, block.scratch.kernels.shape
        g = transforms(self.m, self.shape.stride, v.dtype).g
        matrix = np.kron(g, g).astype(v.dtype)
        kernels = block.scratch.kernels.reshape(panels, runs, TAPS, -1)
        steps: list[Step] = []
        for start in range(parts.start, parts.stop, t):
            some = slice(start, min(start + t, parts.stop))
            u = block.scratch.u[worker, : some.stop - start]
            by_run = u.reshape(len(u), runs, -1).swapaxes(0, 1)
            for panel in range(panels):
                steps.append(partial(np.matmul, matrix[some], kernels[panel], out=by_run))
                group, column = divmod(panel * width, m.shape[3])
                out = m[some, group, :, column : column + width]
                steps += panel_products(v[some, group], u[:, None], out)
        return steps


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(n for n in range(min(most, number), 0, -1) if number % n == 0)
