"""What can go wrong in serving, under the same root as every other error."""

from __future__ import annotations

from lattica.errors import LatticaError


class ServingError(LatticaError):
    """The root of serving's errors."""


class ModelDirError(ServingError):
    """There is no such model directory, or it is not a Hugging Face model."""


class WeightsError(ServingError):
    """A model folder has no weights, or not all that a span needs."""


class UnsupportedModelError(ServingError):
    """The model's layers cannot be served apart from each other."""


class SpanError(ServingError):
    """A span does not fit the model, or the volunteer does not hold it."""


class UnknownModelError(ServingError):
    """Nobody in the mesh serves a model of that name."""


class NoCoverError(ServingError):
    """Some layers of the model are served by nobody and no standby can take them."""


class ContextTooLongError(ServingError):
    """Prompt and answer do not fit the model's context."""


class SessionGoneError(ServingError):
    """The stage holds no such session: it was closed, or idle for too long."""


class PositionError(ServingError):
    """A step does not continue where the session's cache ends."""


class StageLostError(ServingError):
    """A stage failed in mid-generation and no replacement could go on."""


class GatewayPortError(ServingError):
    """The gateway's TCP port cannot be used."""


class RequestError(ServingError):
    """An HTTP request to the gateway is malformed."""
