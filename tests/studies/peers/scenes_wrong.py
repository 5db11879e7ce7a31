# mypy: allow-untyped-calls, disable-error-code="no-any-return"
"""Wrong ports of PSPNet's training in torch, and what the oracle should say of each.

How the name of the first wrong array starts, and the names that the bug may be given: "unknown" is
among them where the library has no such bug.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tests.peers.scenes_ports import NEW
from tests.studies.peers.scenes_plants import (
    Plant,
    _accumulating,
    _aux_detached,
    _aux_of_stage_2,
    _biased_running,
    _bicubic,
    _by_class,
    _caffe,
    _clipped,
    _counted,
    _dampened,
    _decoupled,
    _detached,
    _dropped_backward_unscaled,
    _floor_unrectified,
    _floor_windows,
    _floors_detached,
    _floors_first,
    _frozen,
    _hard_examples,
    _image_means,
    _inverted,
    _is_norm,
    _labels_to_image,
    _mask_of_first,
    _max_pool,
    _nearest,
    _nearest_backward,
    _nesterov,
    _never_running,
    _no_own_input,
    _per_device,
    _resize_without_gradient,
    _resized_back,
    _reversed_running,
    _scaled_gradients,
    _small_labels,
    _smoothed,
    _softmax_twice,
    _summed,
    _transposed_size,
    _unaligned,
    _unaligned_backward,
    _unbiased,
    _undropped,
    _unscaled,
    _var_detached,
    _without,
    at,
    decaying,
    geometry,
    only,
    rating,
    relabelled,
    scheduled,
    settings,
    wrapped,
)


class Wrong(NamedTuple):
    """A wrong port and what should be said of it."""

    plant: Plant
    first: tuple[str, ...]
    names: frozenset[str]


def _wrong(plant: Plant, first: str, *names: str) -> Wrong:
    return Wrong(plant, tuple(first.split()), frozenset(names))


WRONG = {
    # the auxiliary head
    **{
        f"auxiliary loss x {w}": _wrong(settings(aux_weight=w), "loss", "aux-heads")
        for w in (0.0, 0.1, 0.2, 0.399, 0.5, 1.0)
    },
    "auxiliary head detached": _wrong(
        wrapped("aux_input", _aux_detached), "grad/", "aux-heads", "unknown"
    ),
    "auxiliary head of other channels": _wrong(
        wrapped("stage", _aux_of_stage_2), "loss batch_", "unknown"
    ),
    # labels and losses
    "ignored pixels in the denominator": _wrong(
        wrapped("cross_entropy", _counted), "loss", "ignored-pixels"
    ),
    "ignored pixels are class 0": _wrong(relabelled(0), "loss", "ignored-pixels"),
    "ignored pixels are the last class": _wrong(relabelled(2), "loss", "ignored-pixels"),
    "ignored pixels are class 1": _wrong(relabelled(1), "loss", "unknown"),
    "class 0 is ignored, too": _wrong(
        lambda port: setattr(port, "labels", torch.where(port.labels == 0, 255, port.labels)),
        "loss",
        "class-ignored",
    ),
    "labels shifted by one class": _wrong(
        lambda port: setattr(
            port, "labels", torch.where(port.labels == 255, 255, (port.labels + 1) % 3)
        ),
        "loss",
        "labels-shifted",
    ),
    "loss is a mean of images' means": _wrong(
        wrapped("cross_entropy", _image_means), "loss", "loss-mean-of-means"
    ),
    "loss is a sum": _wrong(
        wrapped("cross_entropy", _summed), "loss", "loss-summed", "loss-scaled"
    ),
    "label smoothing 0.1": _wrong(wrapped("cross_entropy", _smoothed), "loss", "label-smoothing"),
    "classes are weighed": _wrong(wrapped("cross_entropy", _by_class), "loss", "unknown"),
    "softmax twice": _wrong(wrapped("cross_entropy", _softmax_twice), "loss", "softmax-twice"),
    "labels at an eighth": _wrong(
        wrapped("cross_entropy", _small_labels), "loss", "labels-resized"
    ),
    "hard examples only": _wrong(wrapped("cross_entropy", _hard_examples), "loss", "unknown"),
    "labels mirrored, images not": _wrong(_labels_to_image, "loss", "unknown"),
    "loss x 2": _wrong(
        wrapped("loss", lambda port, right, *ends: 2 * right(*ends)), "loss", "loss-scaled"
    ),
    "gradients x 1024": _wrong(_scaled_gradients(1024.0), "grad/", "gradients-scaled"),
    # dropout
    "no dropout": _wrong(wrapped("drop", _undropped), "logits", "dropout-wrong"),
    "no dropout in cls": _wrong(
        wrapped("drop", only(at("cls"), _undropped)), "logits", "dropout-wrong"
    ),
    "no dropout in aux": _wrong(
        wrapped("drop", only(at("aux"), _undropped)), "loss", "dropout-wrong"
    ),
    "dropout not scaled": _wrong(wrapped("drop", _unscaled), "logits", "dropout-wrong"),
    "dropout not scaled in aux": _wrong(
        wrapped("drop", only(at("aux"), _unscaled)), "loss", "dropout-wrong"
    ),
    "dropout inverted": _wrong(wrapped("drop", _inverted), "logits", "dropout-wrong"),
    "dropout of rate 0.2": _wrong(settings(dropout=0.2), "logits", "dropout-wrong"),
    "one mask for all images": _wrong(wrapped("drop", _mask_of_first), "logits", "dropout-wrong"),
    "dropout's gradient not scaled": _wrong(
        wrapped("drop", _dropped_backward_unscaled), "grad/", "dropout-wrong", "unknown"
    ),
    # resizing, pyramid
    "corners not aligned": _wrong(
        wrapped("resize", _unaligned), "logits batch_", "corners-not-aligned"
    ),
    "corners not aligned in the pyramid": _wrong(
        wrapped("resize", only(at("ppm"), _unaligned)), "logits batch_", "corners-not-aligned"
    ),
    "corners of aux not aligned": _wrong(
        wrapped("resize", only(at("aux"), _unaligned)), "loss", "corners-not-aligned"
    ),
    "corners of cls not aligned": _wrong(
        wrapped("resize", only(at("cls"), _unaligned)), "logits", "corners-not-aligned"
    ),
    "nearest pixel": _wrong(wrapped("resize", _nearest), "batch_", "nearest-pixel"),
    "bicubic": _wrong(wrapped("resize", _bicubic), "batch_", "resize-cubic"),
    "backward does not align corners": _wrong(
        wrapped("resize", _unaligned_backward), "grad/", "resize-gradient"
    ),
    "backward takes the nearest pixel": _wrong(
        wrapped("resize", _nearest_backward), "grad/", "resize-gradient", "unknown"
    ),
    "backward resizes back": _wrong(wrapped("resize", _resized_back), "grad/", "resize-gradient"),
    "backward resizes back in the pyramid": _wrong(
        wrapped("resize", only(at("ppm"), _resized_back)), "grad/", "resize-gradient"
    ),
    "pyramid's resizing has no gradient": _wrong(
        wrapped("resize", only(at("ppm"), _resize_without_gradient)),
        "grad/",
        "resize-gradient",
        "unknown",
    ),
    "logits transposed": _wrong(
        wrapped("resize", only(at("cls"), _transposed_size)),
        "logits",
        "logits-transposed",
        "unknown",
    ),
    "windows of one size": _wrong(wrapped("pool", _floor_windows), "batch_", "pool-windows"),
    "pyramid takes the maximum": _wrong(wrapped("pool", _max_pool), "batch_", "unknown"),
    "bins 1, 2, 4, 6": _wrong(settings(bins=(1, 2, 4, 6)), "batch_", "pool-bins"),
    "floors in another order": _wrong(settings(bins=(6, 3, 2, 1)), "batch_", "pool-bins"),
    "pyramid without its input": _wrong(wrapped("pyramid", _no_own_input), "batch_", "unknown"),
    "pyramid behind its floors": _wrong(
        wrapped("pyramid", _floors_first), "batch_", "concat-order"
    ),
    "floors detached": _wrong(wrapped("floor", _floors_detached), "grad/", "unknown"),
    "floors without ReLU": _wrong(
        wrapped("relu", only(at("ppm"), _floor_unrectified)),
        "logits batch_",
        "relu-missing",
        "unknown",
    ),
    "heads without ReLU": _wrong(
        wrapped("relu", only(at("cls", "aux"), _floor_unrectified)),
        "logits",
        "relu-missing",
        "unknown",
    ),
    # backbone
    "no dilations": _wrong(
        geometry(lambda stage, index, stride, dilation: (stride, 1)), "batch_", "dilation-ignored"
    ),
    "stage 4 not dilated": _wrong(
        geometry(lambda stage, index, stride, dilation: (stride, 1 if stage == 4 else dilation)),
        "batch_",
        "dilation-ignored",
    ),
    "dilations 2 and 2": _wrong(
        geometry(lambda stage, index, stride, dilation: (stride, min(dilation, 2))),
        "batch_",
        "dilation-other",
    ),
    "dilations 4 and 2": _wrong(
        geometry(lambda stage, index, s, d: (s, {3: 4, 4: 2}.get(stage, d))),
        "batch_",
        "dilation-other",
    ),
    "first blocks not dilated": _wrong(
        geometry(lambda stage, index, s, d: (s, 1 if index == 0 else d)),
        "batch_",
        "dilation-ignored",
        "dilation-other",
        "unknown",
    ),
    # norms
    "eps 1e-3": _wrong(settings(eps=0.001), "batch_", "bn-eps"),
    "unbiased variance": _wrong(
        wrapped("norm", _unbiased), "batch_", "bn-normalises-by-unbiased-variance"
    ),
    "statistics not synchronised": _wrong(
        wrapped("norm", _per_device), "batch_", "bn-not-synchronised", "unknown"
    ),
    "norms of the backbone in evaluation mode": _wrong(
        wrapped("norm", only(at("layer"), _frozen)),
        "batch_ stat/",
        "bn-eval-in-training",
        "bn-running-statistics",
        "unknown",
    ),
    "norms in evaluation mode": _wrong(
        wrapped("norm", _frozen), "batch_ stat/ logits", "bn-evaluation-mode", "unknown"
    ),
    "statistics detached": _wrong(
        wrapped("statistics", _detached), "grad/", "bn-backward-constant-statistics", "unknown"
    ),
    "variance detached": _wrong(
        wrapped("statistics", _var_detached),
        "grad/",
        "bn-backward-without-variance-term",
        "unknown",
    ),
    "running variance biased": _wrong(
        wrapped("running", _biased_running), "stat/", "running-var-biased"
    ),
    "running averages reversed": _wrong(
        wrapped("running", _reversed_running), "stat/", "running-momentum-reversed"
    ),
    "running averages of 0.01": _wrong(
        settings(bn_momentum=0.01), "stat/", "running-momentum-value"
    ),
    "running averages never taken": _wrong(
        wrapped("running", _never_running),
        "stat/",
        "running-momentum-value",
        "running-statistics-frozen",
    ),
    # optimizer
    **{
        f"momentum {m}": _wrong(
            settings(momentum=m), "after/", "momentum-value", "momentum-missing"
        )
        for m in (0.0, 0.5, 0.89, 0.99)
    },
    "nesterov": _wrong(wrapped("update", _nesterov), "after/", "nesterov"),
    "rate in the velocity": _wrong(
        wrapped("update", _caffe), "after/", "velocity-holds-learning-rate"
    ),
    "decoupled decay": _wrong(wrapped("update", _decoupled), "after/", "weight-decay-decoupled"),
    "dampening 0.9": _wrong(wrapped("update", _dampened), "after/", "momentum-dampened"),
    "gradients never cleared": _wrong(
        wrapped("before_update", _accumulating), "after/", "gradients-accumulate"
    ),
    "gradients clipped": _wrong(
        wrapped("before_update", _clipped), "after/", "gradients-clipped", "weight-decay-factor"
    ),
    "no decay": _wrong(decaying(lambda port, name: False), "after/", "weight-decay-missing"),
    "no decay of norms": _wrong(
        decaying(lambda port, name: not _is_norm(name)), "after/", "weight-decay-on-batch-norm"
    ),
    "no decay of biases, norms among them": _wrong(
        decaying(lambda port, name: port.state[name].ndim > 1),
        "after/",
        "weight-decay-on-batch-norm",
    ),
    "no decay of new modules": _wrong(
        decaying(lambda port, name: not name.startswith(NEW)), "after/", "unknown"
    ),
    "decay x 0.5": _wrong(decaying(lambda port, name: False, 0.5), "after/", "weight-decay-factor"),
    "one rate for all": _wrong(settings(times_new=1.0), "after/", "learning-rate-of-new-modules"),
    "new modules at 20 times": _wrong(
        settings(times_new=20.0), "after/", "learning-rate-of-new-modules"
    ),
    "backbone at 10 times, too": _wrong(
        rating(lambda name: 1.0 if name.startswith(NEW) else 10.0),
        "after/",
        "learning-rate-of-new-modules",
        "unknown",
    ),
    "rates exchanged": _wrong(
        rating(lambda name: 0.1 if name.startswith(NEW) else 10.0),
        "after/",
        "learning-rate-of-new-modules",
        "learning-rate-factor",  # and that of the new modules: as good a name
    ),
    "aux at the backbone's rate": _wrong(
        rating(lambda name: 0.1 if name.startswith("aux") else 1.0),
        "after/",
        "learning-rate-of-new-modules",
        "unknown",
    ),
    "pyramid at the backbone's rate": _wrong(
        rating(lambda name: 0.1 if name.startswith("ppm") else 1.0),
        "after/",
        "learning-rate-of-new-modules",
        "unknown",
    ),
    "stage 4 at ten times": _wrong(
        rating(lambda name: 10.0 if name.startswith("layer4") else 1.0),
        "after/",
        "learning-rate-of-new-modules",
        "unknown",
    ),
    "poly of power 1": _wrong(settings(power=1.0), "after/", "poly-schedule"),
    "constant rate": _wrong(settings(power=0.0), "after/", "poly-schedule", "learning-rates"),
    "poly counted from 1": _wrong(
        scheduled(lambda i, n: (1 - (i + 1) / n) ** 0.9), "after/", "poly-schedule"
    ),
    "poly of one step more": _wrong(
        scheduled(lambda i, n: (1 - i / (n + 1)) ** 0.9), "after/", "poly-schedule"
    ),
    "poly by epoch": _wrong(
        scheduled(lambda i, n: 1.0), "after/", "poly-schedule", "learning-rates"
    ),
    "cosine": _wrong(
        scheduled(lambda i, n: 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * i / n))))),
        "after/",
        "poly-schedule",
        "learning-rate-schedule",
        "unknown",
    ),
    "rates x 1.03": _wrong(rating(lambda name: 1.03), "after/", "learning-rate-factor"),
    "auxiliary head never updated": _wrong(
        _without(at("aux")), "after/aux", "learning-rate-of-new-modules"
    ),
    "pyramid never updated": _wrong(
        _without(at("ppm")), "after/ppm", "learning-rate-of-new-modules"
    ),
    "backbone never updated": _wrong(
        _without(at("layer")), "after/layer", "learning-rate-of-new-modules"
    ),
}
