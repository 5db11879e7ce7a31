"""The fake cuDNN offers what the installed frontend offers; graphs are described to both."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from repvgg_ref.gpu.geometry import Geometry
from tests.gpu import fake_cudnn
from tests.gpu.fake_cupy import installed

KINDS = ("forward", "forward_bias", "forward_bias_relu", "grad_x", "grad_weight")
GEOMETRIES = {
    "stride 1": Geometry(2, (9, 7), 8, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stride 2": Geometry(2, (9, 8), 8, 16, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "groups": Geometry(2, (9, 7), 8, 16, (3, 3), (2, 1), (1, 1), (1, 1), 4),
    "dilation": Geometry(2, (9, 7), 8, 8, (3, 3), (1, 1), (2, 2), (2, 2), 2),
    "pointwise": Geometry(2, (9, 8), 8, 16, (1, 1), (2, 2), (0, 0), (1, 1), 1),
}


@pytest.fixture(scope="module")
def frontend() -> Any:
    pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    return importlib.import_module("cudnn")


def test_every_name_is_the_frontends(frontend: Any) -> None:
    fake: Any = fake_cudnn.make_cudnn()
    names = {name for name in vars(fake) if not name.startswith("_")}
    assert {name for name in names if not hasattr(frontend, name)} == set()
    for kind in ("data_type", "numerical_note", "heur_mode"):
        mine = {each.name for each in getattr(fake, kind)}
        assert {name for name in mine if not hasattr(getattr(frontend, kind), name)} == set()
    for name in vars(fake_cudnn.pygraph):
        assert name.startswith("_") or name == "refused" or hasattr(frontend.pygraph, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_frontend_takes_our_graphs_and_infers_our_sizes(
    name: str, kind: Any, frontend: Any
) -> None:
    geometry = GEOMETRIES[name]
    with installed(frontend):
        from repvgg_ref.gpu.cudnn_conv import describe, refused_notes

        graph = frontend.pygraph(
            name="test",
            io_data_type=frontend.data_type.HALF,
            intermediate_data_type=frontend.data_type.FLOAT,
            compute_data_type=frontend.data_type.FLOAT,
        )
        operands = describe(graph, kind, geometry)
        graph.deselect_numeric_notes(refused_notes("fp32", deterministic=True))
    output = operands[-1]
    assert not output.get_is_virtual()
    assert next(node.node_type.name for node in graph.nodes).startswith("CONV_")
    if kind.startswith("forward"):
        inferred = graph.nodes[0].outputs["Y"].get_dim()
        images, height, width, outputs = geometry.y_shape
        assert list(inferred) == [images, outputs, height, width] == list(output.get_dim())
    wanted = {"grad_x": 8, "grad_weight": geometry.weight_shape[1]}.get(kind, geometry.outputs)
    assert output.get_dim()[1] == wanted
    assert output.get_stride()[1] == 1
