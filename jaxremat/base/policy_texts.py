"""A policy of names as people write it, in JAX and in the frameworks that take names in a form of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from jaxremat.base.errors import ArgumentError, EmissionError


def text_of_policy(names: Sequence[str] | None, style: str) -> str:
    """What to paste where a policy is written.

    Args:
      names: what is saved; None where everything is.
      style: one of `STYLES`.

    Raises:
      ArgumentError: for an unknown style.
      EmissionError: if everything is saved.
    """
    if style not in STYLES:
        raise ArgumentError(f"style={style!r} is unknown; choose one of {', '.join(STYLES)}")
    if names is None:
        raise EmissionError("the plan recomputes nothing: leave the checkpoints out, no policy is needed")
    return STYLES[style](names)


def _jax(names: Sequence[str]) -> str:
    return f"save_only_these_names({', '.join(map(_quoted, names))})"


def _maxtext(names: Sequence[str]) -> str:
    """Flags of MaxText's `remat_policy=custom`: a tensor stays on the device or is recomputed; all but the input of a
    layer are recomputed unless they are named."""
    input_of_layer = [] if "decoder_layer_input" in names else ["decoder_layer_input=remat"]
    return " ".join(["remat_policy=custom", *(f"{name}=device" for name in names), *input_of_layer])


def _axlearn(names: Sequence[str]) -> str:
    """A policy of axlearn, whose names are a regular expression."""
    pattern = f"^(?:{'|'.join(map(re.escape, names))})$"
    return (
        f"save_and_offload_only_these_names_regex(names_which_can_be_saved={_quoted(pattern)},"
        ' names_which_can_be_offloaded=None, offload_src="device", offload_dst="pinned_host")'
    )


def _haliax(names: Sequence[str]) -> str:
    """A policy of Haliax for a stack of blocks, whose carries are saved in any case."""
    return f"ScanCheckpointPolicy(save_carries=True, save_block_internals={json.dumps(list(names))})"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


STYLES: Mapping[str, Callable[[Sequence[str]], str]] = MappingProxyType(
    {"jax": _jax, "maxtext": _maxtext, "axlearn": _axlearn, "haliax": _haliax}
)
