"""Units computed by ONNX Runtime or TensorRT in place of their modules. Knows no policy."""
