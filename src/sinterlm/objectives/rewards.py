"""The internal reward of a response, from the policy's log-probabilities, before beta.

Shapes: P responses. LR(y) = log pi(y|x) - log ref(y|x), summed over the tokens of y; |y| is their number.
"""

from __future__ import annotations

from torch import Tensor

from sinterlm.objectives.responses import SequenceLogps, any_known


def summed_logratio(response: SequenceLogps) -> Tensor:
    """LR(y) (DPO, arXiv 2305.18290, equation 5 without beta).

    Returns:
        (P,).

    Raises:
        ValueError: The reference is missing.
    """
    if response.reference is None:
        raise ValueError("a log-ratio needs the reference's log-probabilities; found none")
    return response.policy - response.reference


def mean_logratio(response: SequenceLogps) -> Tensor:
    """LR(y) / |y| (length-normalised DPO: FuseChat-3.0, arXiv 2503.04222; TRL's ``sigmoid_norm``).

    Returns:
        (P,).

    Raises:
        ValueError: The reference is missing, or a response has no token.
    """
    return per_token(summed_logratio(response), response)


def logratio(response: SequenceLogps, *, average_logps: bool) -> Tensor:
    """LR(y), or LR(y) / |y| with ``average_logps``: the two readings of IPO (arXiv 2310.12036, equation 17).

    Returns:
        (P,).
    """
    return mean_logratio(response) if average_logps else summed_logratio(response)


def mean_logp(response: SequenceLogps) -> Tensor:
    """The mean log-probability log pi(y|x) / |y| (SimPO, arXiv 2405.14734, eq. 4 without beta); reads no reference.

    Returns:
        (P,).

    Raises:
        ValueError: A response has no token.
    """
    return per_token(response.policy, response)


def per_token(values: Tensor, response: SequenceLogps) -> Tensor:
    """Values summed over tokens, divided by the number of tokens.

    Raises:
        ValueError: The number of tokens is not given, or (checked only on a CPU) a response has none.
    """
    if response.num_tokens is None or any_known(response.num_tokens <= 0):
        raise ValueError("a mean over tokens needs at least one token in every response")
    return values / response.num_tokens
