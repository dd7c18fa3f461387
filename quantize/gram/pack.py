"""Integers to and from the int32 words of compressed-tensors' `pack-quantized` format.

Source: the format as compressed-tensors 0.17-0.19 writes it and vLLM reads it. Values get 2^(b-1) added and are laid
next to each other from the lowest bit of each word, with no padding bits, along the row for weights and along the
column for zero points. 4 and 8 bits divide a word, so none straddles two.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """int8 [rows, columns] in [-2^(b-1), 2^(b-1) - 1] to int32 [rows, ceil(columns * bits / 32)]."""
    each = 32 // bits
    rows, columns = values.shape
    unsigned = (values.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if columns % each:
        unsigned = torch.nn.functional.pad(unsigned, (0, -columns % each))
    if bits == 8:
        # Flat first: one row may have any stride.
        return unsigned.flatten().view(torch.int32).view(rows, -1)
    # Two 4-bit values a byte, the first in the low half; bytes in a word come lowest first (little endian).
    pairs = unsigned.reshape(rows, -1, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).flatten().view(torch.int32).view(rows, -1)


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse: int32 [rows, words] to int8 [rows, columns]."""
    whole = words.flatten().view(torch.uint8).view(words.shape[0], -1)
    if bits == 4:
        whole = torch.stack((whole & 15, whole >> 4), -1).flatten(1)
    return (whole.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)[:, :columns]


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """int8 zero points [rows, groups] to int32 [ceil(rows * bits / 32), groups]."""
    return pack(zeros.T.contiguous(), bits).T.contiguous()


def unpack_zeros(words: Tensor, bits: int, rows: int) -> Tensor:
    """The inverse: int32 [words, groups] to int8 [rows, groups]."""
    return unpack(words.T, bits, rows).T.contiguous()
