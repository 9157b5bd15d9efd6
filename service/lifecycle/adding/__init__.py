"""`answerable models add`: a folder with a manifest, made of somebody's ONNX file and a few answers."""
