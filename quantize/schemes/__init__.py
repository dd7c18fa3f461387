"""The quantization schemes, and the vLLM kernels that serve them."""
