"""What the gateway tells about the mesh's models. Only volunteers that answered are in it."""

from __future__ import annotations

from typing import Any

from serving.messages import StageInfo
from serving.routing import Live
from serving.span import missing


def is_complete(live: list[Live]) -> bool:
    """Whether live volunteers cover every layer, standbys included."""
    return not state_of(live)["missing"]


def state_of(live: list[Live]) -> dict[str, Any]:
    """Who serves which layers of a model, and what is missing."""
    infos: list[StageInfo] = [entry.info for entry in live]
    layers = max(info.layers for info in infos)
    spans = [info.span for info in infos if info.state == "serving" and info.span is not None]
    standbys = sum(info.state == "standby" for info in infos)
    gaps = missing(layers, spans)
    return {
        "layers": layers,
        "stages": [
            {"peer": info.name, "span": str(info.span), "sessions": info.sessions}
            for info in infos
            if info.state == "serving"
        ],
        "standbys": standbys,
        "missing": [] if standbys and len(gaps) <= standbys else [str(gap) for gap in gaps],
    }


def card_of(name: str, live: list[Live]) -> dict[str, Any]:
    """OpenAI's model object."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mesh",
        "context_length": max(entry.info.context for entry in live),
        "stages": len(state_of(live)["stages"]),
    }
