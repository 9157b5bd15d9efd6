"""Kinds of input as ONNX graphs take them: one file a kind."""
