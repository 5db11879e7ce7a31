"""What `convert` says of a file of blocks, to people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repvgg_ref_cli.options import say

if TYPE_CHECKING:
    from repvgg_ref.files.convert_modules import ModulesConversion
    from repvgg_ref.files.modules import FoundBlock

_SHOWN = 12


def modules_json(done: ModulesConversion) -> dict[str, Any]:
    """The object that ``repvgg-ref convert --json`` prints."""
    check = done.self_check
    return {
        "model": None,
        "dialect": None,
        "container": done.container,
        "form": "modules",
        **blocks_json(done.blocks, done.tensors),
        "untouched": done.untouched,
        "tensors": done.tensors,
        "out": str(done.out),
        "format": done.format,
        "self_check": check and check.to_json(),
    }


def blocks_json(blocks: Sequence[FoundBlock], tensors: int) -> dict[str, Any]:
    """What `convert` and `inspect` say of a file's blocks."""
    kinds = Counter(block.member.name for block in blocks)
    return {
        "family": kinds.most_common(1)[0][0],
        "untouched": tensors - sum(len(block.owned) for block in blocks),
        "blocks": [
            {
                "prefix": block.prefix.rstrip("."),
                "kind": block.member.name,
                "eps": block.eps,
                "fused": block.fused,
            }
            for block in blocks
        ],
    }


def blocks_line(blocks: Sequence[FoundBlock]) -> str:
    """How many there are of each kind."""
    kinds = Counter(block.member.name for block in blocks)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def show_modules(source: Path, done: ModulesConversion, *, to_stdout: bool) -> None:
    """Tell people; on stderr if stdout gets the file itself."""
    from weights_io import sanitize

    tell = partial(say, err=to_stdout)
    kinds = ", ".join(dict.fromkeys(block.member.name for block in done.blocks))
    tell(f"read   {sanitize(source.name)}: {len(done.blocks)} blocks ({kinds}), {done.container}")
    for message in done.notes:
        tell(f"       {message}")
    for block in done.blocks[:_SHOWN]:
        eps = f", eps {block.eps:g}" if block.member.eps else ""
        tell(f"       {sanitize(block.fused or '.')}: {block.member.name}{eps}")
    if len(done.blocks) > _SHOWN:
        tell(f"       ... {len(done.blocks) - _SHOWN} more: --json lists them")
    where = "stdout" if to_stdout else sanitize(str(done.out))
    tell(f"wrote  {where}: {done.tensors} arrays, {done.untouched} of them as they were")
    if (check := done.self_check) is not None:
        tell(
            f"check  fused = branches in every block; closest to its bound: {check.layer}, "
            f"error {check.max_error:.2g}, bound {check.bound:.2g}"
        )
