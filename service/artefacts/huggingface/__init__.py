"""Hugging Face folders: networks of the package transformers, with weights from safetensors files."""
