"""What an operator is to the oracle: its arrays, its settings, and what a right port may give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError, did_you_mean
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.operators.rounding import Approx, Rounding
from repvgg_ref.oracle.programs.program import Program

Arrays = Mapping[str, Array]
Settings = Mapping[str, Any]
Expected = dict[str, Approx]

# Arithmetic that does not round: what an operator's definition gives, in float64.
EXACT = Rounding(Precision("exact", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float("inf")))


@dataclass(frozen=True)
class Operator:
    """One operator; a port of it is called as ``port(*arrays, **settings)``.

    Attributes
    ----------
    arrays : tuple of str
        Its arguments in order. `bundle`, if any, is the last: a dict of all other arrays.
    settings : mapping
        Keyword arguments and what they are where nobody says otherwise.
    outputs : tuple of str
        What it returns, in order; in some settings only the first of them.
    expect : callable
        Arrays, settings and arithmetic -> output name -> `Approx`. Pure; raises `ShapeError`.
    program : callable
        The same operator as a block or head, which the library of bugs can mutate; None if it is
        none.
    """

    name: str
    arrays: tuple[str, ...]
    settings: Settings
    outputs: tuple[str, ...]
    expect: Callable[[Arrays, Settings, Rounding], Expected]
    program: Callable[[Arrays, Settings], Program | None] = lambda arrays, settings: None
    bundle: str = ""
    optional: tuple[str, ...] = ()

    @property
    def is_backward(self) -> bool:
        """Whether it gives gradients."""
        return self.outputs[0].startswith("grad_")

    def positional(self, arrays: Arrays) -> list[Any]:
        """The arrays as a port gets them: copies of its own, absent ones None."""
        given = {name: np.array(array) for name, array in arrays.items()}
        plain = [given.pop(name, None) for name in self.arrays if name != self.bundle]
        return [*plain, given] if self.bundle else plain


@dataclass(frozen=True)
class Call:
    """An operator applied: what bugs mutate.

    Attributes
    ----------
    arrays, settings : mapping
        All of them, settings without gaps.
    finish : callable
        What is done to the outputs by a port that is wrong.
    label : str
        What the call is, in a few words.
    integers : bool
        Whether sums of these numbers are exact in any format and order.
    """

    operator: Operator
    arrays: Arrays
    settings: Settings
    label: str = ""
    integers: bool = False
    finish: Callable[[dict[str, Array]], dict[str, Array]] | None = None

    @property
    def name(self) -> str:
        """The operator's."""
        return self.operator.name

    def expect(self, rounding: Rounding) -> Expected:
        """What a right port of such arithmetic may give."""
        return self.operator.expect(self.arrays, self.settings, rounding)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a right port returns, in order."""
        return tuple(self.expect(EXACT))

    def outputs(self) -> dict[str, Array]:
        """What it gives in float64."""
        found = {name: a.value for name, a in self.expect(EXACT).items()}
        return found if self.finish is None else self.finish(found)

    def but(self, arrays: Arrays | None = None, **settings: Any) -> Call:
        """The same with some arrays or settings changed."""
        return replace(
            self,
            arrays={**self.arrays, **(arrays or {})},
            settings={**self.settings, **settings},
        )

    def then(self, **changes: Callable[[Array], Array]) -> Call:
        """The same with some outputs changed afterwards."""
        before = self.finish

        def finish(outputs: dict[str, Array]) -> dict[str, Array]:
            outputs = outputs if before is None else before(outputs)
            return {n: changes[n](y) if n in changes else y for n, y in outputs.items()}

        return replace(self, finish=finish)


@dataclass(frozen=True)
class Answer:
    """What a port gave for one call; `precision` if the arrays' types say so."""

    outputs: Arrays
    precision: str | None = None
    notes: tuple[str, ...] = field(default=())


def complete(operator: Operator, settings: Settings) -> dict[str, Any]:
    """All settings of an operator, those given and the usual ones.

    Raises
    ------
    ReportedError
        If it has no such setting.
    """
    for name in settings:
        if name not in operator.settings:
            raise ReportedError(
                f"{operator.name}: there is no such setting",
                got=name,
                wanted=", ".join(operator.settings) or "none",
                advice=did_you_mean(name, operator.settings),
            )
    return {**operator.settings, **settings}
