"""Put measured milliseconds on the parts of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bottleneck_opt.diagrams.picture import Change, Part, Picture


def time_parts(picture: Picture, before: Mapping[str, float], after: Mapping[str, float]) -> Picture:
    """The picture with the time of each part.

    Args:
        picture: What is drawn.
        before, after: Milliseconds in each leaf module over all its calls, in the original model and in the rewritten
            one; what is in both counts as in the original.
    """
    parts = tuple(_time_part(part, after if part.change is Change.ADDED else before) for part in picture.parts)
    return replace(picture, parts=parts)


def _time_part(part: Part, milliseconds: Mapping[str, float]) -> Part:
    modules = [node for node in part.unit.nodes if node.kind == "module" and node.path in milliseconds]
    if not modules:
        return part
    return replace(part, milliseconds=sum(milliseconds[node.path] / node.calls for node in modules))
