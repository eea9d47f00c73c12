"""Attention: y = softmax(s q k^T + m) v, of n image, h head, l query, t key, e and f features of a key and a value.

    p[n,h,l,t] = exp(s sum_e q[l,e] k[t,e] + m[l,t] - z[l]),   y[l,f] = sum_t p[l,t] v[t,f],   z = log sum_t exp(..)

Backward makes p again, a piece at a time, from q, k, m and z; what goes through the softmax needs y too. So it needs
q, k, v, m, y, and one number per row. That is what the flash kernel keeps; it computes the gradients of q, k and v
together, whichever are wanted, in five products of matrices where forward has two. Source: Dao et al.: FlashAttention,
NeurIPS 2022 (arXiv 2205.14135), appendix B; _scaled_dot_product_flash_attention_for_cpu in PyTorch's derivatives.yaml
and flop_counter.py.

Where PyTorch has no flash kernel (dropout; a mask whose gradient is wanted; keys and values of different sizes) it
computes with whole matrices p: what it keeps then was seen when the network was traced.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.values import Layer
from ..units import FLOAT_BITS, FLOPS_PER_MAC
from . import learned
from .facts import Dense, Facts, Private

FLASH, MASK = "flash", "attn_mask"


def scaled_dot_product(layer: Layer) -> Facts:
    """Return the facts of scaled_dot_product_attention; the trace says in its `kernel` who computes it."""
    assert layer.learned is not None  # the tracer runs every call of it
    plain = learned.facts(layer, layer.learned)
    if layer.attributes["kernel"] != FLASH:
        return plain
    query, key, value = (layer.inputs[role] for role in ("query", "key", "value"))
    keys = key.shape[-2]
    product, sum_ = (FLOPS_PER_MAC * keys * tensor.elements for tensor in (query, layer.output))
    weights = [Dense(query), Dense(key), Private("statistics", _rows(layer), max(FLOAT_BITS, query.bits))]
    if MASK in layer.inputs:
        weights.append(_mask(layer))
    kept = [*weights, Dense(value), Dense(layer.output)]
    backward = 3 * product + 2 * sum_
    joint = {wanted: tuple(kept) for wanted in plain.together if MASK not in wanted}
    return replace(
        plain,
        needs=plain.needs | dict.fromkeys(("query", "key"), (tuple(kept),)) | {"value": (tuple(weights),)},
        together=plain.together | joint,
        together_flops=plain.together_flops | dict.fromkeys(joint, backward),
        backward_flops=plain.backward_flops | {wanted[0]: backward for wanted in joint if len(wanted) == 1},
    )


def _rows(layer: Layer) -> int:
    return layer.output.elements // layer.output.shape[-1]


def _mask(layer: Layer) -> Dense | Private:
    """Return what is kept of a mask: itself, or numbers in place of truth values."""
    mask = layer.inputs[MASK]
    if mask.dtype != "bool":
        return Dense(mask)
    return Private("mask's numbers", mask.elements, layer.output.bits, mask.batched)
