"""How much each answer, or each source, counts: a softmax over scores (FuseRL, arXiv 2504.06562)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sinterlm.records import Scored


def softmax_weights(scores: Sequence[float], *, temperature: float) -> list[float]:
    """exp(s_i / t) / sum over j of exp(s_j / t), which neither overflows nor depends on a shift of all scores.

    Args:
        scores: Finite.
        temperature: The t above, in units of the scores. Reward models that give similar scores (ArmoRM: about 0.13 to
            0.18) need a small one for contrast; at 0, the limit, the best answers share the whole weight.

    Returns:
        One weight for each score; they sum to 1.

    Raises:
        ValueError: There is no score, one is not finite, or the temperature is below 0.

    >>> softmax_weights([0.0, math.log(3)], temperature=1.0)
    [0.25, 0.75]
    """
    _require_finite(scores)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a finite number, at least 0")
    best = max(scores)
    if temperature == 0:
        return [(score == best) / list(scores).count(best) for score in scores]
    exponentials = [math.exp((score - best) / temperature) for score in scores]
    total = math.fsum(exponentials)
    return [exponential / total for exponential in exponentials]


def source_weights(answers: Sequence[Scored], *, temperature: float) -> Mapping[str, float]:
    """The weight of each source: a softmax over the best score of each (FuseRL's equation 8, as its reviews say).

    Args:
        answers: Of all sources to one prompt, each with a score.
        temperature: As in :func:`softmax_weights`.

    Returns:
        Weights by source, in the order of their first answers; they sum to 1.

    Raises:
        ValueError: As :func:`softmax_weights`.
    """
    _require_finite([answer.score.value for answer in answers])
    best: dict[str, float] = {}
    for answer in answers:
        source = answer.response.source
        best[source] = max(answer.score.value, best.get(source, -math.inf))
    return dict(zip(best, softmax_weights(list(best.values()), temperature=temperature), strict=True))


def _require_finite(scores: Sequence[float]) -> None:
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"weights need at least one score, and finite ones; found {list(scores)}")
