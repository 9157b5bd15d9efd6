"""Takes this folder's model.onnx from the package magika, as it is; run by `python models/build.py magika`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import magika
import onnx

MODEL = "standard_v3_3"


def logit_tensor(model: onnx.ModelProto) -> str:
    """What the graph takes the exponentials of, before the greatest is taken off: its softmax is written out."""
    makers = {name: node for node in model.graph.node for name in node.output}
    (exponential,) = [node for node in model.graph.node if node.op_type == "Exp"]
    difference = makers[exponential.input[0]]
    assert difference.op_type == "Sub"
    return str(difference.input[0])


def build(folder: Path) -> Mapping[str, Any]:
    """Copies the graph; gives what its own configuration says."""
    source = Path(magika.__file__).parent / "models" / MODEL
    shutil.copyfile(source / "model.onnx", folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    config = json.loads((source / "config.min.json").read_text())
    first, last, padding = config["beg_size"], config["end_size"], config["padding_token"]
    assert not config["mid_size"]
    print(f"  {MODEL} of magika {magika.__version__}, {len(config['target_labels_space'])} labels")
    return {
        "inputs": {
            "tensor": model.graph.input[0].name,
            "length": first + last,
            "vocabulary": padding + 1,
            "padding": padding,
            "mask": padding,
            "bytes": {"first": first, "last": last, "block": config["block_size"]},
        },
        "outputs": {
            "labels": config["target_labels_space"],
            "tensors": {"logit": logit_tensor(model), "probability": model.graph.output[0].name},
        },
    }
