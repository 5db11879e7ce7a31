"""A network and its evaluation: ``x -> block -> ... -> block -> pool -> linear``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.backends import backend_ops, require_algorithm, required_memory
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.errors import NotFusibleError, ReportedError, ShapeError
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.arguments import (
    as_array,
    checked_eps,
    floating_dtype,
    image_batch,
    label_array,
    require_head,
    require_network,
    require_own,
    require_seed,
    require_threads,
    training_batch,
    working_dtype,
)
from repvgg_ref.models.geometry import unusual
from repvgg_ref.models.graph import QUIET, Network, walk
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import Form, Pass
from repvgg_ref.models.names import official_names, require_params
from repvgg_ref.models.parameters import counted, initial_params, param_shapes
from repvgg_ref.models.registry import network
from repvgg_ref.models.resident import Resident, in_dtype, like, step_like
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import Ops

DEFAULT_EPS = 1e-5
DEFAULT_MOMENTUM = 0.1


@dataclass(eq=False)
class Model:
    """A RepVGG with its weights, in the three-branch form ("train") or the fused one ("deploy").

    Attributes
    ----------
    arch : Architecture
    form : {"train", "deploy"}
    params : dict
        Canonical name -> array; `state_dict` gives the official names. To change one, replace it.
        Changes in place are seen too, or refused once arrays are packed (deploy form) or copied to
        a device; those of arrays that are on a device already may be overlooked.
    eps, momentum : float
        Batch norm's constants, which no checkpoint holds; the official code uses 1e-5 and 0.1.
    notes : list of str
        What was decided while loading (a wrapper, an EMA entry, a prefix), for people.
    about : About
        Class names and how pictures are prepared, where that is known.
    assumed : Assumed
        What the file that it was loaded from could not tell.
    """

    arch: Network
    form: Form
    params: dict[str, Array]
    eps: float = DEFAULT_EPS
    momentum: float = DEFAULT_MOMENTUM
    notes: list[str] = field(default_factory=list)
    about: About = field(default_factory=About)
    assumed: Assumed = field(default_factory=Assumed)
    _resident: dict[int, Resident] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        """One line."""
        kinds = " and ".join(self.arch.kinds)
        numbers = counted(self.arch, self.form, self.params)
        other = f"; {unlike}" if (unlike := unusual(self.arch).says) else ""
        ends = f"{self.arch.in_channels} channels to {self.arch.num_classes} classes"
        return f"<Model {self.name}: {self.form} form, {kinds} blocks, {numbers}, {ends}{other}>"

    @property
    def name(self) -> str:
        """The official name, or "custom"."""
        return self.arch.name

    @property
    def block(self) -> str:
        """The kind of its blocks, a name in `blocks.catalogue.block_names`."""
        return self.arch.kinds[0]

    @overload
    def forward(
        self,
        x: Array,
        *,
        backend: str | Ops | None = ...,
        layers: Literal[False] = ...,
        algorithm: str = ...,
        threads: int | None = ...,
        memory: str | int | None = ...,
    ) -> Array: ...
    @overload
    def forward(
        self,
        x: Array,
        *,
        backend: str | Ops | None = ...,
        layers: Literal[True],
        algorithm: str = ...,
        threads: int | None = ...,
        memory: str | int | None = ...,
    ) -> dict[str, Array]: ...
    def forward(
        self,
        x: Array,
        *,
        backend: str | Ops | None = None,
        layers: bool = False,
        algorithm: str = "auto",
        threads: int | None = None,
        memory: str | int | None = None,
    ) -> Array | dict[str, Array]:
        """Evaluate the network (batch norm by its running statistics).

        Parameters
        ----------
        x : array, shape (N, in_channels, H, W)
            Normalised images, of real numbers; computed in their dtype. A tensor of another
            library counts as the NumPy array it converts to, and so does the result.
        backend : {"reference", "numpy", "cupy", "auto"} or a table of operators, optional
            Where to compute; default the variable ``REPVGG_BACKEND``, else "numpy". On a GPU
            weights are copied once and kept, 16-bit images are computed in mixed precision, and
            the result is where `x` is.
        layers : bool
            Return every layer's output, ``{"stage0": ..., "stage1.0": ..., "linear": logits}``.
        algorithm : {"auto", "measure", "direct", "winograd2", ..4, ..5, ..6, ..7}
            How the "numpy" backend convolves in deploy form. "auto" in float32 takes Winograd
            where it is faster, at most 4e-6 of the largest logit wrong on random networks and 2e-5
            on networks made to be hard (direct: 8e-7 and 1e-6). In float64 "auto" is "direct".
            "measure" times the same choices on this machine, once.
        threads : int, optional
            Of the "numpy" backend; default ``REPVGG_NUM_THREADS``, else all processors.
        memory : {"fast", "lean"} or bytes, optional
            What its packed weights may take beside the model's own; default ``REPVGG_MEMORY``, else
            "fast", as much as is fastest. "lean": half of what the weights take.

        Returns
        -------
        logits : array, shape (N, num_classes), or the dict of all layers

        Raises
        ------
        ShapeError
            If `x` is not 4-d with the network's number of channels.
        ReportedError
            If `x` is a list, or holds integers.
        BackendError
            If the backend, the algorithm, the number of threads or the memory cannot be had.
        """
        x = image_batch(self.arch, x)
        ops = backend_ops(backend, x.dtype)
        require_threads(threads)
        require_algorithm(algorithm)  # also where there is nothing to choose: in train form
        memory = required_memory(memory)
        kept = self._at(ops)
        with ops.on_threads(threads):
            how = {"algorithm": algorithm, "threads": threads, "memory": memory}
            fused = self.form == "deploy" and x.size
            fast = kept.fast(self.arch, self.params, x.dtype, **how) if fused else None
            if fast is not None:
                on_table = kept.enter(x)
                outputs = fast.layers(on_table) if layers else {"": fast.forward(on_table)}
            else:
                outputs = dict(self._walked(x, kept, layers=layers))
        found = {name: like(x, y) for name, y in outputs.items()}
        return found if layers else next(iter(found.values()))

    __call__ = forward

    def _walked(self, x: Array, kept: Resident, *, layers: bool) -> Iterator[tuple[str, Array]]:
        """Every layer's output, or the logits alone, as arrays of their own."""
        for name, y in self.walk(x, kept.ops):
            if layers or name == self.arch.head.name:
                yield name, array_module(y).ascontiguousarray(y)

    def _at(self, ops: Ops) -> Resident:
        """What is kept for this table, which is held: its id stays its own."""
        return self._resident.setdefault(id(ops), Resident(ops))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what is kept: it holds threads, or device memory."""
        return self.__dict__ | {"_resident": {}}

    def walk(self, x: Array, ops: Ops) -> Iterator[tuple[str, Array]]:
        """Yield ``(layer name, output)`` in order, holding few: no `Visit`, which holds inputs."""
        x = image_batch(self.arch, x)
        require_params(self.arch, self.form, self.params)
        kept = self._at(ops)
        params = kept.params(self.params, x.dtype) if ops.on_device else in_dtype(self.params, x)
        run = Pass(params, ops, self.eps, self.form)
        for node, _, y, _ in walk(self.arch.evaluated, kept.enter(x), lambda node: run):
            if node.name not in QUIET:
                yield node.name, ops.leave(y)

    def loss_and_grads(
        self,
        x: Array,
        labels: Array,
        *,
        label_smoothing: float = 0.0,
        backend: str | Ops | None = None,
        drop_seed: int | None = None,
        dropout: float | None = None,
    ) -> StepResult:
        """Forward and backward in training mode (batch statistics); changes nothing.

        Parameters
        ----------
        x : array, shape (N, in_channels, H, W)
        labels : int array or list (N,), or float array (N, num_classes) of target probabilities;
            of a dense network int (N, H, W), 255 for pixels that do not count
        drop_seed : int, optional
            Of the network's dropout and stochastic depth; by default nothing is dropped.
        dropout : float, optional
            The rate of dropout, where it is not to be the network's own; 0.0 switches it off.

        Returns
        -------
        StepResult
            `.loss`, `.logits`, `.grads` and `.stats` (running statistics after the step), the
            latter two under the official parameter names.

        Raises
        ------
        NotFusibleError
            If the model is in deploy form: its branches are gone, so it cannot be trained.
        """
        require_branches(self, "loss_and_grads")
        require_head(self.arch, "loss_and_grads")
        require_params(self.arch, self.form, self.params)
        x = training_batch(self.arch, x)
        ops = backend_ops(backend, x.dtype)
        params, images = self.params, x
        if ops.on_device:
            params = self._at(ops).params(self.params, x.dtype)
            images = self._at(ops).enter(x)
        step = training_step(
            self.arch,
            params,
            images,
            label_array(labels),
            ops=ops,
            eps=self.eps,
            momentum=self.momentum,
            label_smoothing=label_smoothing,
            draws=None if drop_seed is None else (drop_seed,),
            dropout=dropout,
        )
        step = step_like(x, step) if ops.on_device else step
        official = official_names(self.arch, self.form)
        return step._replace(
            grads={official[name]: grad for name, grad in step.grads.items()},
            stats={official[name]: stat for name, stat in step.stats.items()},
        )

    def state_dict(self) -> dict[str, Array]:
        """The model's own arrays under the official names (``stage1.0.rbr_dense.conv.weight``).

        All can be written to: copies take the place of those that are read-only.
        """
        names = official_names(self.arch, self.form)
        for ours in names:
            # CuPy's arrays are never read-only, and their flags do not say so
            if not getattr(self.params[ours].flags, "writeable", True):
                self.params[ours] = self.params[ours].copy()
        return {name: self.params[ours] for ours, name in names.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Replace arrays by those in `state`, given under the official names.

        Arrays that `state` does not name stay as they are.

        Raises
        ------
        ShapeError
            If a name is not this network's, or an array has another shape; nothing is replaced.
        """
        ours = {name: canonical for canonical, name in official_names(self.arch, self.form).items()}
        shapes = param_shapes(self.arch, self.form)
        taken: dict[str, Array] = {}
        for name, given in state.items():
            if name not in ours:
                raise ShapeError(
                    f"{self.name} in {self.form} form has no such array",
                    got=name,
                    wanted=f"names such as {next(iter(ours))}",
                )
            array = taken[ours[name]] = as_array(given, name)
            if tuple(array.shape) != shapes[ours[name]]:
                raise ShapeError(
                    f"{name} has the wrong shape", got=array.shape, wanted=shapes[ours[name]]
                )
        require_params(self.arch, self.form, self.params | taken)
        self.params.update(taken)


def build(
    name: str | Network,
    *,
    seed: int = 0,
    num_classes: int | None = None,
    in_channels: int | None = None,
    dtype: Any = np.float32,
    eps: float = DEFAULT_EPS,
    block: str | None = None,
) -> Model:
    """An untrained model in train form: by a name of `list_models`, or a network of your own.

    By name it has 1000 classes and 3 channels unless you say otherwise; a RepVGG may have another
    kind of `block`, a name in `blocks.catalogue.block_names`. A network of your own has its own.

    Raises
    ------
    CheckpointError
        If there is no network of that name.
    ReportedError
        If there is no class or channel, `dtype` or `eps` is none that weights can have, or the
        network of your own has other classes, channels or blocks than you say.
    """
    require_network(name)
    require_seed(seed)
    asked: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "block": block}
    asked = {what: value for what, value in asked.items() if value is not None}
    arch = network(name, **asked) if isinstance(name, str) else require_own(name, asked)
    dtype = np.dtype(np.float32) if dtype is None else floating_dtype(dtype, "build")
    return Model(arch, "train", initial_params(arch, seed=seed, dtype=dtype), eps=checked_eps(eps))


def fuse(model: Model, *, dtype: Any = None) -> Model:
    """The deploy form of `model`: every block one 3x3 convolution, each tap rounded once.

    Parameters
    ----------
    dtype : numpy dtype, optional
        Default float64 for a float64 model, else float32.

    Raises
    ------
    NotFusibleError
        If the model is fused already, holds NaN, infinity or a negative variance, or has blocks
        that no convolution equals.
    """
    require_branches(model, "fuse")
    model.arch.require_fusible()
    return fold_norms(model, dtype=dtype)


def fold_norms(model: Model, *, dtype: Any = None) -> Model:
    """`fuse`, also of a network whose shortcuts span several convolutions: these stay as they are.

    For a network of residual-reorg blocks, which `fuse` refuses; of others it is `fuse`.
    """
    require_branches(model, "fold_norms")
    require_params(model.arch, model.form, model.params)
    last = [name for name in param_shapes(model.arch, "train") if name.endswith("weight")][-1]
    dtype = (
        working_dtype(model.params[last].dtype) if dtype is None else floating_dtype(dtype, "fuse")
    )
    params: dict[str, Array] = {}
    for spec in model.arch.blocks:
        params[f"{spec.name}.fused.weight"], params[f"{spec.name}.fused.bias"] = fuse_block(
            spec, model.params, eps=model.eps, dtype=dtype
        )
    for node in model.arch.evaluated:
        if isinstance(node.op, NormLinear):
            params |= node.op.folded(node.name, model.params, eps=model.eps, dtype=dtype)
    for name in param_shapes(model.arch, "deploy"):
        if name not in params:
            params[name] = model.params[name].astype(dtype)
    # What was assumed of eps is in the fused kernels now, and assumed still.
    return replace(model, form="deploy", params=params, notes=list(model.notes))


def require_branches(model: Model, what: str) -> None:
    """Refuse, by name, what a fused model cannot do; and what is no model."""
    if not isinstance(model, Model):
        raise ReportedError(
            f"{what} takes a Model", got=type(model).__name__, advice="load the file"
        )
    if model.form != "train":
        raise NotFusibleError(
            f"{what} needs the three branches of a block, and fusion has summed them",
            got=f"{model.name} in deploy form",
            wanted="the train form",
            advice="load the training-time checkpoint",
        )
