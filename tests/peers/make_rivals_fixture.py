"""What torchvision's networks hold and compute, as a committed file.

torchvision and the project's own torch cannot be installed beside each other, so this runs by
hand, in a virtual environment that has torchvision, from the repository's root:

    python -m tests.peers.make_rivals_fixture

ResNeXt-101 32x4d and RegNetX-12GF have no name in torchvision: its classes make them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.models import efficientnet, regnet, resnet, vgg  # in an environment of its own

from tests.models.published_weights import SHOWN, digest, image, weights

PATH = Path(__file__).parents[1] / "models" / "fixtures" / "torchvision.json"


def regnetx_12gf() -> Any:
    """Table 8 of arXiv 2003.13678."""
    made = regnet.BlockParams.from_init_params(
        depth=19, w_0=168, w_a=73.36, w_m=2.37, group_width=112
    )
    return regnet.RegNet(made)


NETWORKS: dict[str, Callable[[], Any]] = {
    "ResNet-18": resnet.resnet18,
    "ResNet-34": resnet.resnet34,
    "ResNet-50": resnet.resnet50,
    "ResNet-101": resnet.resnet101,
    "ResNet-152": resnet.resnet152,
    "ResNeXt-50": resnet.resnext50_32x4d,
    "ResNeXt-101": lambda: resnet.ResNet(
        resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4
    ),
    "VGG-16": vgg.vgg16,
    "RegNetX-3.2GF": regnet.regnet_x_3_2gf,
    "RegNetX-12GF": regnetx_12gf,
    "EfficientNet-B0": efficientnet.efficientnet_b0,
    "EfficientNet-B3": efficientnet.efficientnet_b3,
}


def macs(network: Any) -> int:
    """Multiply-accumulates of convolutions and linear layers, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.float()(torch.zeros(1, 3, 224, 224))
    return int(counter.get_total_flops()) // 2


def record(make: Callable[[], Any]) -> dict[str, Any]:
    """Parameters, multiply-accumulates at 224, a checksum of keys and shapes, some logits."""
    network = make().eval()
    shapes = {key: tuple(array.shape) for key, array in network.state_dict().items()}
    found = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": macs(network),
        "keys": digest(shapes),
    }
    if "features.28.weight" in shapes:  # VGG averages small images into large ones: not ours
        return found
    network.double().load_state_dict({k: torch.tensor(a) for k, a in weights(shapes).items()})
    with torch.inference_mode():
        logits = network(torch.from_numpy(image()))[0].tolist()
    return found | {"logits": logits[:SHOWN], "largest": max(map(abs, logits))}


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    recorded = {name: record(make) for name, make in NETWORKS.items()}
    PATH.write_text(json.dumps(recorded, indent=1) + "\n")
