"""Which experts tokens go to: noted in one run of a model, and kept in another one. Imports torch alone.

Rounding weights moves a few tokens to other experts, and a token that another expert answers changes by as much as its
whole answer. With the choices of the run that it is compared with, a run shows what rounding does to the arithmetic.

Experts are modules that are called with hidden states, the numbers of the experts of each token, and their weights, as
transformers 5 calls them (all architectures but Llama 4, Aria and Switch, whose experts get no numbers). Modules have
other names in other layouts of a model, so they are known by the order in which they are first called.
"""

import contextlib

import torch
from torch.nn.modules.module import register_module_forward_pre_hook


@contextlib.contextmanager
def noted():
    """Within it, choices are noted: a list with an entry for each module, which is the list of its calls' (numbers
    [tokens, experts of a token], weights).
    """
    order, found = {}, []

    def hook(module, args):
        if not _chosen(args):
            return
        if module not in order:
            order[module] = len(found)
            found.append([])
        found[order[module]].append((args[1].clone(), args[2].clone()))

    handle = register_module_forward_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@contextlib.contextmanager
def kept(choices):
    """Within it, tokens go where the noted choices, one call of each module, sent them. Yields a list that gets the
    number of tokens that would have gone elsewhere, for each module.
    """
    order, moved = {}, []

    def hook(module, args):
        if not _chosen(args):
            return None
        if module not in order:
            order[module] = len(moved)
            moved.append(0)
        numbers, weights = choices[order[module]]
        if numbers.shape != args[1].shape or weights.shape != args[2].shape:
            raise ValueError(f"{numbers.shape[0]} tokens were noted, and {args[1].shape[0]} come")
        other = (args[1].sort(-1).values != numbers.to(args[1]).sort(-1).values).any(-1, keepdim=True)
        moved[order[module]] += int(other.sum())
        given = (torch.where(other, numbers.to(args[1]), args[1]), torch.where(other, weights.to(args[2]), args[2]))
        return (args[0], *given, *args[3:])

    handle = register_module_forward_pre_hook(hook)
    try:
        yield moved
    finally:
        handle.remove()


def _chosen(args):
    """Whether a module is called as experts are."""
    if len(args) < 3 or not all(isinstance(one, torch.Tensor) and one.dim() == 2 for one in args[1:3]):
        return False
    return not args[1].is_floating_point() and args[1].dtype != torch.bool and args[2].is_floating_point()
