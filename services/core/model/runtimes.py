"""The values of PRESSWORK_RUNTIME, which the onnx pipeline reads."""

RUNTIMES = ("openvino", "onnxruntime")
PROVIDERS = ("cuda", "tensorrt", "openvino", "migraphx", "qaic")  # of ONNX Runtime, beside the CPU's own
NAMES = (*RUNTIMES, *(f"onnxruntime:{name}" for name in PROVIDERS))
