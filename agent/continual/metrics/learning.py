"""Whether the agent still learns as it did: its network, and the areas of its visits."""

from __future__ import annotations

import math

from agent.continual.life import Life
from agent.continual.metrics.metric import Better, Metric, mean, slope
from agent.continual.metrics.scores import Scores

_STORED: dict[str, tuple[str, Better]] = {
    "dormant": ("share of hidden units with at most .025 of their layer's activity", "low"),
    "dormant_0.1": ("share of hidden units with at most .1 of their layer's activity", "low"),
    "effective_rank": ("exp of the entropy of the last hidden layer's singular values", "high"),
    "stable_rank": ("singular values with 99 % of the sum, of the last hidden layer", "high"),
    "saturated": ("share of activations above .95 in absolute value", "low"),
    "weight_norm": ("root mean square of weights and biases", ""),
}
METRICS = [
    *(
        Metric(
            f"plasticity.{name}",
            f"Mean over visits, drifts left out, of the policy's {what} when the visit is over.",
            "rank" if "rank" in name else "share" if better else "1",
            better,
            "Sokar et al. (2023)" if "dormant" in name else "",
        )
        for name, (what, better) in _STORED.items()
    ),
]
SCORED = [
    Metric(
        "plasticity.auc",
        "Slope over visits, numbered from 0, of the area under the visit's curve minus that of "
        "scratch in the same visit: below 0, the agent learns worse than a fresh one the older it "
        "is.",
        "score/visit",
        "high",
        "loss of plasticity of Dohare et al. (2024), here as a slope",
        raw=True,
    )
]


def learning(life: Life) -> dict[str, float]:
    """Means of what was stored of the policy after each visit."""
    schedule = life.protocol.schedule
    visits = [visit for visit in life.visits if not schedule[visit.visit].drifting]
    return {
        f"plasticity.{name}": mean(visit.plasticity.get(name, math.nan) for visit in visits)
        for name in _STORED
    }


def areas(scores: Scores, scratch: Scores | None) -> dict[str, float]:
    """``plasticity.auc``."""
    if scratch is None:
        return {}
    reset = {visit.number: visit.auc for visit in scratch.visits}
    return {"plasticity.auc": slope((v.number, v.auc - reset[v.number]) for v in scores.visits)}
