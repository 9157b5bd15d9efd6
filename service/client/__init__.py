"""The Python client: predictions with explanations from a running service, typed.

    with Client("http://localhost:8080", key="ak_...") as client:
        loan = client.model("loan")
        explanation = loan.explain(row, context=Context(subject="applicant-4711"), target="denied")
        explanation.attributions.ranked()[:4], explanation.reasons, client.verify(explanation.id).valid

It needs httpx and nothing else, so that it can be installed without the service.
"""

from .answers import (
    Attributions,
    Baseline,
    ByFeature,
    ByPixel,
    ByStep,
    ByToken,
    ContinuationToken,
    Explanation,
    LikelyToken,
    LogPlace,
    ModelRef,
    PredictedClass,
    PredictedEmbedding,
    PredictedLabels,
    PredictedTokens,
    PredictedValues,
    Prediction,
    Reason,
    Record,
    Segment,
    Target,
    Timings,
    Verification,
)
from .calls import Context, Continuation, Contrast, Noise, Parameters, Similarity, TargetOf
from .clients import AsyncClient, AsyncModel, Client, Model
from .descriptions import BaselineSet, Feature, Method, ModelDescription, Outputs
from .errors import (
    ClientError,
    DamagedRecord,
    Erased,
    Fault,
    Forbidden,
    ImpossibleRequest,
    NotFound,
    Refused,
    TryLater,
    Unauthenticated,
    UnexpectedAnswer,
    Unreachable,
)
from .retries import Retries

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "Attributions",
    "Baseline",
    "BaselineSet",
    "ByFeature",
    "ByPixel",
    "ByStep",
    "ByToken",
    "Client",
    "ClientError",
    "Context",
    "Continuation",
    "ContinuationToken",
    "Contrast",
    "DamagedRecord",
    "Erased",
    "Explanation",
    "Fault",
    "Feature",
    "Forbidden",
    "ImpossibleRequest",
    "LikelyToken",
    "LogPlace",
    "Method",
    "Model",
    "ModelDescription",
    "ModelRef",
    "Noise",
    "NotFound",
    "Outputs",
    "Parameters",
    "PredictedClass",
    "PredictedEmbedding",
    "PredictedLabels",
    "PredictedTokens",
    "PredictedValues",
    "Prediction",
    "Reason",
    "Record",
    "Refused",
    "Retries",
    "Segment",
    "Similarity",
    "Target",
    "TargetOf",
    "Timings",
    "TryLater",
    "Unauthenticated",
    "UnexpectedAnswer",
    "Unreachable",
    "Verification",
]
