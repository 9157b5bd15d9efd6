"""Makes this folder's files as version 1 makes its own, without the features that its manifest marks as protected.

    python models/loan/2/train.py [--out FOLDER]

Data, shuffle, network and settings are version 1's, so the held-out rows are the same applications in the same order.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import yaml

HERE = Path(__file__).resolve().parent
FIRST = HERE.parent / "1"


def first_version() -> ModuleType:
    """Version 1's train.py as a module."""
    spec = importlib.util.spec_from_file_location("train_loan_1", FIRST / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Make everything and say how well it predicts."""
    described = yaml.safe_load((FIRST / "manifest.yaml").read_text())["inputs"]["features"]
    protected = {feature["name"] for feature in described if feature.get("protected")}
    first = first_version()
    first.main(HERE, [feature for feature in first.FEATURES if feature.name not in protected])


if __name__ == "__main__":
    main()
