"""gram: weight quantization from Gram matrices, streamed one decoder layer at a time.

Runs inside an engine environment (torch, transformers, safetensors) and imports nothing of qpack. The quantization
error of a linear layer on its calibration inputs X is tr(dW G dW^T) with G = X^T X, so one Gram matrix for each
distinct input of a layer scores every scale and every clipping without touching the data again, and is also what GPTQ
rounds with.
docs/explanation/gram.md describes the method.
"""
