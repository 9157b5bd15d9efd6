"""Reads the file that a user names as a model, or says what a file that is not ONNX is, and what to do about it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx

from service.artefacts.onnx.parsing import parse_onnx
from service.errors import CatalogError

OF_TORCH = (
    "a file of PyTorch's, which is code or a pickle and is not opened; export the model with "
    "torch.onnx.export(model.eval(), (rows,), 'model.onnx', external_data=False)"
)
OF_KERAS = "a file of Keras or TensorFlow; convert it with tf2onnx (tf2onnx.convert.from_keras)"
A_PICKLE = "a pickle, which is never opened; convert a scikit-learn pipeline with skl2onnx (skl2onnx.to_onnx)"
HOLDS_ROWS = "a file of rows; name the ONNX file first, and the rows with --data"
OTHERS = {
    ".pt": OF_TORCH,
    ".pth": OF_TORCH,
    ".ckpt": OF_TORCH,
    ".bin": OF_TORCH,
    ".pt2": "a program of torch.export; write its manifest by hand, as models/README.md says, or export it "
    "with torch.onnx.export(..., external_data=False)",
    ".safetensors": "weights without the network that they belong to; name the Hugging Face folder that they are from, "
    "write the manifest by hand (an `architecture`, as models/README.md says), or export the model to ONNX",
    ".h5": OF_KERAS,
    ".keras": OF_KERAS,
    ".pb": OF_KERAS,
    ".tflite": OF_KERAS,
    ".pkl": A_PICKLE,
    ".pickle": A_PICKLE,
    ".joblib": A_PICKLE,
    ".csv": HOLDS_ROWS,
    ".npy": HOLDS_ROWS,
    ".npz": HOLDS_ROWS,
    ".json": "JSON, and no ONNX file; boosted trees are saved so, and have no gradient to explain",
    ".ubj": "a file of XGBoost's; trees have no gradient to explain",
    ".yaml": "a manifest or the like; name the ONNX file",
    ".data": "weights that are kept apart from their ONNX file; name that, and these are read with it",
}
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS in the place of the file; fetch it with git lfs pull",
    b"PK\x03\x04": "a zip archive, as PyTorch's and Keras' own files are; export the model to ONNX",
    b"\x80": A_PICKLE,
    b"\x89HDF": OF_KERAS,
    b"{": OTHERS[".json"],
    b"<": "a page of a web site, or XML; was the download refused?",
}


def read_model(file: Path) -> onnx.ModelProto:
    """The model. Raises CatalogError, saying what to do, where the file holds none."""
    what = OTHERS.get(file.suffix.lower())
    if what is not None:
        raise CatalogError(f"{file.name} is {what}")
    content = file.read_bytes()
    if not content:
        raise CatalogError(f"{file.name} is empty: not a valid ONNX model")
    try:
        return parse_onnx(content, partial(read_beside, file.parent))
    except CatalogError as error:
        known = next((text for start, text in BEGINNINGS.items() if content.startswith(start)), None)
        raise CatalogError(f"{file.name} is {known}" if known else f"{file.name}: {error}") from error


def read_beside(folder: Path, location: str) -> bytes:
    """The bytes of a file that a graph in `folder` keeps weights in. Raises CatalogError unless it lies there too."""
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CatalogError(f"its weights are in {location}, a link out of its folder; put the file itself there")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CatalogError(
            f"its weights are in {location}, which cannot be read ({error.strerror}); put that file beside it"
        ) from error
