"""ONNX graphs of any network: read without trust, and their linear parts fused."""
