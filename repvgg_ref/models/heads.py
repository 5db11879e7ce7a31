"""A linear layer behind a batch norm of features, which its fused form takes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import one_conv
from repvgg_ref.blocks.fusion import FusedConv, fuse_linear
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm
from repvgg_ref.blocks.run import NORM_VECTORS, BatchStats
from repvgg_ref.blocks.selfcheck import BlockCheck, check_linear
from repvgg_ref.models.layers import Form, Linear, Pass, Shapes


@dataclass(frozen=True, slots=True)
class NormLinear(Linear):
    """``y = W BN(x) + b`` of features (N, C), in evaluation one matrix and one bias."""

    def shapes(self, form: Form) -> Shapes:
        """The norm's vectors (C,) and its counter, where it is there; then the linear layer's."""
        norm = Norm("bn", self.features).shapes() if form == "train" else {}
        return norm | Linear.shapes(self, form)

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """By the batch's statistics in training, else by the running ones."""
        if run.form == "deploy":
            return Linear.forward(self, name, x, run)
        image = _image(x[0], run)
        gamma, beta, mean, var = (run.params[f"{name}.bn.{part}"] for part in NORM_VECTORS)
        if run.training:
            z, norm = run.ops.batch_norm_train_forward(image, gamma, beta, eps=run.eps)
            run.stats[f"{name}.bn"] = BatchStats(norm.mean, norm.var, len(image))
        else:
            z, norm = run.ops.batch_norm_eval_forward(image, gamma, beta, mean, var, eps=run.eps)
        y, linear = Linear.forward(self, name, [z.reshape(x[0].shape)], run)
        return y, (norm, linear)

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """Through the linear layer, then through the norm."""
        norm, linear = cache
        (grad,) = Linear.backward(self, name, grad_y, linear, run, wants_x=True)
        assert grad is not None
        ops = run.ops
        way = ops.batch_norm_train_backward if run.training else ops.batch_norm_eval_backward
        grads = way(_image(grad, run), norm)
        run.grads[f"{name}.bn.gamma"] = grads.grad_gamma
        run.grads[f"{name}.bn.beta"] = grads.grad_beta
        return [grads.grad_x.reshape(grad.shape)]

    @property
    def linear(self) -> Chain:
        """The same of an image of one pixel."""
        last = Conv("linear", self.features, self.outputs, (1, 1), bias=True)
        return Chain(Identity("x", self.features), Norm("bn", self.features), last)

    def folded(
        self, name: str, params: Mapping[str, Array], *, eps: float, dtype: Any
    ) -> dict[str, Array]:
        """The arrays of the deploy form, every number rounded once, as a block's are.

        Raises
        ------
        NotFusibleError
            As for `blocks.fusion.fuse_block`.
        """
        whole, parts = self.linear, self._parts(name, params)
        fused = fuse_linear(name, whole, one_conv(whole, name), parts, eps=eps, dtype=dtype)
        return {f"{name}.weight": fused.weight[:, :, 0, 0], f"{name}.bias": fused.bias}

    def check(
        self, name: str, params: Mapping[str, Array], made: Mapping[str, Array], *, eps: float
    ) -> BlockCheck:
        """Whether what `folded` made computes the same, as a block is checked."""
        whole, parts = self.linear, self._parts(name, params)
        fused = FusedConv(made[f"{name}.weight"][:, :, None, None], made[f"{name}.bias"])
        return check_linear(name, whole, one_conv(whole, name), parts, fused, eps=eps)

    def _parts(self, name: str, params: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays, as `linear` calls them."""
        parts = {f"bn.{part}": params[f"{name}.bn.{part}"] for part in NORM_VECTORS}
        weight = {"linear.weight": params[f"{name}.weight"][:, :, None, None]}
        return parts | weight | {"linear.bias": params[f"{name}.bias"]}


def _image(features: Array, run: Pass) -> Array:
    """(N, C) as an image of one pixel, in the table's layout."""
    images, channels = features.shape
    shape = (images, 1, 1, channels) if run.ops.layout == "NHWC" else (images, channels, 1, 1)
    return features.reshape(shape)
