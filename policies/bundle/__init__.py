"""The bundle of engines on disk: its manifest and its files. Neither torch nor ONNX is imported."""
