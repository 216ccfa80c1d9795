"""The copy of a network that is traced: every weight is one layer's own parameter, attention is written out with linears."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def check_names(net: nn.Module) -> None:
    """Raises ValueError for a name that cannot stand in the code that torch.fx writes, or where quantizers will be."""
    if isinstance(getattr(net, "q", None), Tensor):
        raise ValueError(f"{type(net).__name__}: quantizers are kept under the name q, which a tensor has here; rename it")
    for name, _ in (*net.named_modules(), *net.named_parameters(), *net.named_buffers()):
        if '"' in name or "\\" in name or not name.isprintable():
            raise ValueError(f"{type(net).__name__}: torch.fx cannot write the name {name!r}; no quotes, backslashes or line breaks")


def copied(net: nn.Module) -> nn.Module:
    """A copy in float, on the CPU, in eval mode."""
    # what a hook made of other weights stands beside the parameters, and deepcopy refuses it where gradients were on
    made = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(net, {id(value): value.detach().clone() for value in made}).cpu().float().eval()


def own_weights(net: nn.Module) -> None:
    """Weights that a parametrization or a hook made of others at every call become parameters, and shared ones are parted."""
    for module in net.modules():
        _unhook(module)
        if parametrize.is_parametrized(module):
            _unparametrize(module)
    seen: set[int] = set()
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in seen:
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))


def _unparametrize(module: nn.Module) -> None:
    """As torch's remove_parametrizations, which would change the class that a copy shares with its original."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _unhook(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        match hook:
            case prune.BasePruningMethod():
                prune.remove(module, hook._tensor_name)
            case WeightNorm():
                remove_weight_norm(module, hook.name)
            case SpectralNorm():
                remove_spectral_norm(module, hook.name)


class Attention(nn.Module):
    """nn.MultiheadAttention written out with linears, so that they can be quantized. (B, T, D) -> (B, T, D), None.

    Only self-attention without masks is; any other call goes to the module as it was, in float.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.whole, self.heads = whole, whole.num_heads
        width = whole.embed_dim
        self.qkv = nn.Linear(width, 3 * width, bias=whole.in_proj_bias is not None)
        self.qkv.weight.data.copy_(whole.in_proj_weight.data)
        if whole.in_proj_bias is not None:
            self.qkv.bias.data.copy_(whole.in_proj_bias.data)
        self.out_proj = nn.Linear(width, width, bias=whole.out_proj.bias is not None)
        self.out_proj.load_state_dict(whole.out_proj.state_dict())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        masked = key_padding_mask is not None or attn_mask is not None
        if masked or not _alike(query, key) or not _alike(query, value):
            return self.whole(query, key, value, key_padding_mask, need_weights, attn_mask, **more)
        b, t, d = query.shape
        q, k, v = self.qkv(query).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, t, d)), None


def _alike(one: Any, other: Any) -> bool:
    """Whether two tensors are the same or, while tracing, come of the same call: norm(x) is often written once for each."""
    if not isinstance(one, fx.Proxy) or not isinstance(other, fx.Proxy):
        return one is other
    a, b = one.node, other.node
    return (a.op, a.target, a.args, a.kwargs) == (b.op, b.target, b.args, b.kwargs)


def unfold_attention(net: nn.Module) -> None:
    """Self-attention modules of torch.nn are replaced by ones that can be traced, but in layers that read their weights."""
    for name, child in net.named_children():
        if isinstance(child, nn.MultiheadAttention) and child.batch_first and child.in_proj_weight is not None and child.bias_k is None:
            setattr(net, name, Attention(child))
        elif not isinstance(child, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            unfold_attention(child)
