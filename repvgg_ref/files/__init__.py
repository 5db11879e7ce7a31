"""A model and its file: containers, dialects, identification, conversion, inspection, ONNX."""
