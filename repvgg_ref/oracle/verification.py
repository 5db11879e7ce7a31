"""The oracle's front: is this port right, which layer is wrong, which bug is it.

Every layer is computed by the reference in float64 *from the candidate's own input of that
layer*, so an error is found where it is made and not where it is seen, and can be held against a
bound of that one layer. End-to-end bounds are useless: through RepVGG-A0 they reach 2e20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import load
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.models.arguments import as_array, image_batch
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.assumptions import Seen, reconsidered
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.oracle.bounds.precision import PRECISIONS, Precision, precision_of
from repvgg_ref.oracle.candidates import (
    Candidate,
    CandidateFailure,
    Outputs,
    WeightsCandidate,
    computing,
    resolve,
)
from repvgg_ref.oracle.candidates.dumps import array_names
from repvgg_ref.oracle.comparing import Progress, aligned
from repvgg_ref.oracle.diagnosis.explain import explain
from repvgg_ref.oracle.diagnosis.file_evidence import with_file_evidence
from repvgg_ref.oracle.diagnosis.probing import logits_of
from repvgg_ref.oracle.golden.folder import is_golden
from repvgg_ref.oracle.integers.question import is_about_integers
from repvgg_ref.oracle.probes.first_call import first_call, require_images
from repvgg_ref.oracle.probes.naming import finding
from repvgg_ref.oracle.probes.probing import probed
from repvgg_ref.oracle.programs.flow import inputs_of_layers
from repvgg_ref.oracle.programs.inputs import images_of_size
from repvgg_ref.oracle.programs.layers import (
    Programs,
    has_programs,
    require_layers,
    require_reference,
)
from repvgg_ref.oracle.report import Report
from weights_io import sanitize

_LOST_INPUT = "the input holds NaN or infinity"

CandidateLike = Model | str | Path | Callable[..., Any] | Mapping[str, Array] | Array


def verify(
    reference: Model | IntegerNetwork | str | Path,
    candidate: CandidateLike,
    *,
    inputs: Array | None = None,
    eps: float | None = None,
    precision: str = "auto",
    timeout: float = 300.0,
    progress: Progress | None = None,
) -> Report:
    """Judge a port of RepVGG against the reference, layer by layer.

    Parameters
    ----------
    reference : Model or path
        The train form knows more (its branches) than the deploy form; both work. A bundle of golden
        vectors judges training dumps, too, an integer network its own kind, bit for bit.
    candidate : path, "module:callable", callable, or mapping of layer outputs
        See `repvgg_ref.oracle.candidates`.
    inputs : array, shape (N, C, H, W), optional
        Default: the candidate's own, else inputs made so that bugs show. A bundle has its own.
    eps : float, optional
        Batch norm's eps of the reference, if it is given as a path. Default 1e-5.
    precision : {"auto", "fp32", "tf32", "bf16", "fp16", "fp16-acc16"}
        What the candidate is held to; "fp16-acc16" is fp16 whose sums are kept in 16 bits, too.
        "auto" never excuses float32 for computing like less.
    timeout : float
        Seconds that a candidate in a process of its own may take.
    progress : callable, optional
        Called with (layer, layers compared, layers in all) while layers are compared.

    Returns
    -------
    Report
        `.verdict` is "agree", "disagree" or "cannot-judge"; `.raise_if_bad()` makes it a test.

    Raises
    ------
    ReportedError
        If the reference or the inputs are unusable. A candidate's failure is in the report.
    """
    inputs = None if inputs is None else as_array(inputs, "the inputs")
    if is_about_integers(reference, candidate):
        from repvgg_ref.oracle.integers.front import verify_integers

        return verify_integers(
            reference, candidate, inputs=inputs, eps=eps, timeout=timeout, progress=progress
        )
    assert not isinstance(reference, IntegerNetwork)
    if not isinstance(reference, Model):
        if is_golden(reference):
            require_no_inputs(inputs)
            return verify_golden(reference, candidate, precision=precision, timeout=timeout)
        reference = load(reference, eps=eps)
    return _verify(reference, candidate, inputs, precision, timeout, progress)


def require_no_inputs(inputs: object) -> None:
    """Raise `ReportedError` if inputs were given beside a golden bundle."""
    if inputs is not None:
        raise ReportedError(
            "a golden bundle has its own inputs",
            got="other inputs beside it",
            wanted="the bundle alone, or the checkpoint it was made from with the inputs",
        )


def verify_golden(
    folder: str | Path,
    candidate: Any,
    *,
    reference: Model | str | Path | None = None,
    precision: str = "auto",
    timeout: float = 300.0,
) -> Report:
    """Judge a port against a bundle: a training dump by its steps, anything else by its layers.

    `reference` is the bundle's checkpoint, if it came without; the rest is as for `verify`.

    Raises
    ------
    ReportedError
        If layers are to be judged and the weights are nowhere.
    """
    from repvgg_ref.oracle.golden.read import read_golden
    from repvgg_ref.oracle.training.dump import is_training_dump
    from repvgg_ref.oracle.training.judge import judge_training

    golden = read_golden(folder, reference=reference)
    steps = golden.steps
    if steps is not None and is_training_dump(array_names(candidate), steps.exact):
        return judge_training(steps, candidate, model=golden.model)
    if golden.model is None:
        raise ReportedError(
            f"{sanitize(Path(folder).name)}: the bundle came without weights",
            wanted="the checkpoint it was made from, to compute each layer from the port's input",
            advice="give it as the reference, and the bundle's outputs.npz as the inputs",
        )
    return _verify(golden.model, candidate, None, precision, timeout, None, spare=golden.x)


def _verify(
    model: Model,
    candidate: CandidateLike,
    inputs: Array | None,
    precision: str,
    timeout: float,
    progress: Progress | None,
    *,
    spare: Array | None = None,
) -> Report:
    """The verdict, and what was assumed of the reference on the way to it.

    `spare` are inputs for a candidate that brings none, if none were given.
    """
    require_reference(model)

    def against(reference: Model) -> tuple[Report, Seen | None]:
        return _judged(reference, candidate, inputs, precision, timeout, progress, spare)

    report, seen = against(model)
    if report.verdict != "agree" and model.assumed:
        report = reconsidered(report, model, seen, lambda other: against(other)[0])
    return replace(report, assumed=model.assumed, notes=(*model.notes, *report.notes))


def _judged(
    model: Model,
    candidate: CandidateLike,
    inputs: Array | None,
    precision: str,
    timeout: float,
    progress: Progress | None,
    spare: Array | None,
) -> tuple[Report, Seen | None]:
    named = sanitize(str(candidate)) if isinstance(candidate, str | Path) else "candidate"
    if precision != "auto":
        _require_precision(precision)
    if inputs is not None:  # of every kind of candidate, also of those that need none
        require_images(model.arch, inputs)
    try:
        port = resolve(candidate, model.arch, timeout=timeout)
        named = port.name
        if isinstance(port, WeightsCandidate) and not (model.arch.is_chain or model.arch.is_dense):
            port = computing(port, model) if has_programs(model.arch) else port
        if isinstance(port, WeightsCandidate):
            if inputs is not None and not _is_finite(inputs):  # as of those that are run
                return Report("cannot-judge", _LOST_INPUT, model.name, named, "weights"), None
            from repvgg_ref.oracle.diagnosis.static_check import check_weights

            stored = precision if precision == "auto" else PRECISIONS[precision].number_format
            return check_weights(model, port.path, stored), None
        require_layers(model.arch)
        batch = spare if inputs is None and not port.brings_input else inputs
        if not has_programs(model.arch):
            return _graph(model, port, batch, precision, named), None
        # Whatever the caller or the port set, rounding to zero is no error in here.
        with closing(port), np.errstate(all="warn", under="ignore"):
            first = first_call(port, model.arch, batch)
            settings: Any = {"precision": precision, "candidate": named, "progress": progress}
            again = None if port.brings_input else partial(logits_of, port)
            programs = Programs(model)
            report = judge(programs, first.outputs, first.x, again=again, **settings)
            with single_threaded_blas():
                report = with_file_evidence(report, programs, first.outputs.evidence)
            layers = first.outputs.layers
            seen = Seen(first.x, inputs_of_layers(programs, layers, first.x), layers)
            return probed(report, programs, port, first, judge), seen
    except CandidateFailure as failure:
        lost = (finding("batch-dependent", None),) if failure.verdict == "disagree" else ()
        why = str(failure)
        return Report(failure.verdict, why, model.name, named, precision, diagnosis=lost), None


def _graph(
    model: Model, port: Candidate, inputs: Array | None, precision: str, named: str
) -> Report:
    """The verdict on a network that is no chain: of residual blocks, or of a class a pixel."""
    from repvgg_ref.oracle.graphs.judge import judge_graph
    from repvgg_ref.oracle.graphs.logits import judge_dense_logits

    is_dense, head = model.arch.is_dense, model.arch.head.name
    with closing(port), np.errstate(all="warn", under="ignore"):
        if is_dense and inputs is None and not port.brings_input:
            inputs = images_of_size(model.arch, port.input_shape())
        first = first_call(port, model.arch, inputs)
    image_batch(model.arch, np.asarray(first.x, np.float32))  # of a size that it takes
    outputs, programs = first.outputs, Programs(model)
    chosen = _precision(precision, outputs)
    with single_threaded_blas():
        alone = replace(outputs, layers={n: y for n, y in outputs.layers.items() if n == head})
        if is_dense and outputs.layers.keys() == {head}:
            return judge_dense_logits(model, alone, first.x, chosen, named)
        report = judge_graph(programs, outputs, first.x, chosen, named)
        if is_dense and report.verdict == "cannot-judge" and head in outputs.layers:
            of_logits = judge_dense_logits(model, alone, first.x, chosen, named)
            report = of_logits if of_logits.verdict == "disagree" else report  # wrong by themselves
        return with_file_evidence(report, programs, outputs.evidence)


def judge(
    reference: Model | Programs,
    outputs: Outputs,
    x: Array,
    *,
    precision: str = "auto",
    candidate: str = "candidate",
    progress: Progress | None = None,
    again: Callable[[Array], Array] | None = None,
) -> Report:
    """The verdict on layer outputs that are at hand already; `x` is the batch they belong to.

    `again` gives the candidate's logits for other images, if it can be asked.
    """
    if not isinstance(reference, Model | Programs) or not isinstance(outputs, Outputs):
        raise ReportedError(
            "judge compares layer outputs with a model",
            got=f"{type(reference).__name__} and {type(outputs).__name__}",
            wanted="a Model and Outputs",
            advice="verify(model, {layer: array}, inputs=x) takes plain arrays",
        )
    programs = reference if isinstance(reference, Programs) else Programs(reference)
    model, chosen = programs.model, _precision(precision, outputs)
    reason = _unjudgeable(model, x, outputs)
    if reason:
        return Report("cannot-judge", reason, model.name, candidate, chosen.name)
    if set(outputs.layers) == {"linear"}:
        if not model.arch.is_chain:
            reason = "logits alone say too little of a network that is no chain: give its layers"
            return Report("cannot-judge", reason, model.name, candidate, chosen.name)
        from repvgg_ref.oracle.diagnosis.blackbox import judge_logits

        with single_threaded_blas():
            return judge_logits(
                programs, outputs, x, chosen, candidate, again=again, progress=progress
            )
    with single_threaded_blas():
        case, same = aligned(programs, outputs, x, chosen, candidate, progress)
        return replace(explain(case), equivalences=same)


def _precision(asked: str, outputs: Outputs) -> Precision:
    """What the candidate is held to."""
    name = asked if asked != "auto" else outputs.precision or precision_of(outputs.layers)
    _require_precision(name)
    return PRECISIONS[name]


def _require_precision(name: str) -> None:
    if name not in PRECISIONS:
        raise ReportedError(
            "there is no such precision", got=repr(name), wanted=", ".join(("auto", *PRECISIONS))
        )


def _unjudgeable(model: Model, x: Array, outputs: Outputs) -> str:
    """Why nothing can be said, or the empty string."""
    if not outputs.layers:
        return "the candidate gave no outputs"
    if not all(np.isfinite(array).all() for array in model.params.values()):
        return "the reference itself holds NaN or infinity"
    if not _is_finite(x):
        return _LOST_INPUT
    require_images(model.arch, x)
    if not set(model.arch.layer_names) & set(outputs.layers):
        return "none of the candidate's outputs is a layer of this network"
    return ""


def _is_finite(x: Array) -> bool:
    return bool(np.isfinite(np.asarray(x, np.float64)).all())
