"""qpack: one recipe in, a quantized, measured, gated and published model out."""

__version__ = "0.2.0"
