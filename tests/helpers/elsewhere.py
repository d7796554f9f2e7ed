"""A stand-in for a GPU: a device `away` whose tensors live in this machine's memory and refuse what a real one refuses.

`python tests/helpers/elsewhere.py run recipe.yaml` is `tutelage run recipe.yaml` on it. An operation on tensors of both
devices raises, as on any GPU, and so does one that makes float64, as on Apple's. What is computed is computed by the
CPU's own kernels. At the end the command says how many operations ran there and how many were refused: a refusal may be
caught on its way up.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "away"
LIBRARY = torch.library.Library("_", "IMPL")
"""Holds the device's operations for as long as this process lives."""
aten = torch.ops.aten
MAY_MIX = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor}
"""Operations that take tensors of several devices: copies, and indices from the CPU."""
COUNTS = {"computed": 0, "refused": 0}


class Away(torch.Tensor):
    """A tensor of the device, around the CPU's tensor that holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Away:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device(NAME, 0), **layout)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on the CPU's tensors; its results are on the device unless they were asked for on the CPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    foreign = [tuple(one.shape) for one in tensors if not isinstance(one, Away) and one.ndim]
    if foreign and any(isinstance(one, Away) for one in tensors) and func not in MAY_MIX:
        raise refusal(RuntimeError(f"{func}: some tensors are on {NAME}, those of shapes {foreign} on the CPU"))
    COUNTS["computed"] += 1
    stays = is_away(kwargs.get("device"), otherwise=True)
    plain = kwargs | ({"device": "cpu"} if "device" in kwargs else {})
    result = func(*tree_map(home, args), **tree_map(home, plain))
    if func is aten.copy_.default and not isinstance(args[0], Away):
        return args[0]
    if not stays:
        return result
    result = tree_map(sent, result)
    return (
        return_and_correct_aliasing(func, args, kwargs, result)
        if any(isinstance(one, Away) for one in tensors)
        else result
    )


def is_away(device: Any, *, otherwise: bool = False) -> bool:
    return otherwise if device is None else torch.device(device).type == NAME


def home(value: Any) -> Any:
    return value.inner if isinstance(value, Away) else value


def sent(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, Away):
        return value
    if value.dtype is torch.float64:
        raise refusal(TypeError(f"{NAME} has no float64"))
    return Away(value)


def refusal(error: Exception) -> Exception:
    COUNTS["refused"] += 1
    return error


class Makers(TorchFunctionMode):
    """torch.zeros, torch.tensor and the like with this device; lists as indices, which C++ turns into tensors of the
    device."""

    functions = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.functions and is_away(kwargs.get("device")):
            made = func(*args, **kwargs | {"device": "cpu"})
            return sent(made.detach()).requires_grad_(made.requires_grad)
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Away):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
        return func(*args, **kwargs)


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def install() -> None:
    """From here on this process has the device, and torch, transformers and tutelage use it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    LIBRARY.fallback(lambda func, *args, **kwargs: computed(func, args, kwargs), "PrivateUse1")
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    save, load = torch.save, torch.load

    def loaded(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        found = load(*args, map_location="cpu", **kwargs)
        return tree_map(sent, found) if is_away(map_location) else found

    torch.save = lambda value, *args, **kwargs: save(
        tree_map(home, value), *args, **kwargs
    )  # as memory of this machine
    torch.load = loaded
    Makers().__enter__()


if __name__ == "__main__":
    torch.set_num_threads(1)
    install()
    from tutelage.cli.main import main

    sys.argv[0] = "tutelage"
    try:
        main()
    finally:
        print(f"{NAME}: {COUNTS['computed']} operations computed, {COUNTS['refused']} refused")
