"""Weight files: safetensors, GGUF and random stand-ins, all behind one `WeightSource`.

source          the protocol and `open_weights`
safetensors     single and sharded safetensors folders
gguf            tensors of a GGUF file, under Hugging Face names and shapes
gguf_header     the checked header
gguf_dequantize quantized blocks to float
gguf_names      tensor names and layouts by architecture
gguf_metadata   typed look-ups in the metadata
gguf_rotary     metadata of rotary scaling to its configuration
gguf_config     metadata to a Hugging Face style configuration
dummy           fast random weights for benchmarks
"""

from drivetrain.weights.source import TensorInfo, WeightSource, open_weights

__all__ = ["TensorInfo", "WeightSource", "open_weights"]
