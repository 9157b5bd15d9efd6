"""ONNX artefacts and their twins."""
