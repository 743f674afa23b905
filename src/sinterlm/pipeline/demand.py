"""Which answers get a score: all, or with ``score: on-demand`` those that a selection of the recipe looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from sinterlm.pipeline.fusion import Fusion, Round, SamplingRequest
from sinterlm.records import Response
from sinterlm.selection.settings import SelectionPolicy, Side


class Demand:
    """The answers of a round that some selection looks at.

    A model's evaluation answers always count, because the figures are made of them.

    Args:
        fusion: The fusion.
        asked: The round.
    """

    def __init__(self, fusion: Fusion, asked: Round) -> None:
        self._fusion = fusion
        self._round = asked

    def needed(self, request: SamplingRequest, part: str, answers: Sequence[Response]) -> list[Response]:
        """Those of a model's answers to a prompt of this part that need a score, in their order."""
        if self._is_evaluation(request):
            return list(answers)
        wanted = {
            answer.id
            for policy in self._policies(request, part)
            for answer in policy.looks_at(answers, self._side(request))
        }
        return [answer for answer in answers if answer.id in wanted]

    def most(self, request: SamplingRequest, part: str) -> int:
        """How many of a model's answers to a prompt of this part need a score, at most."""
        name, number = request.participant.name, request.num_samples
        if self._is_evaluation(request):
            return number
        if self._side(request) == "target":
            return number if any(self._policies(request, part)) else 0
        return max((policy.samples_of(name, number) for policy in self._policies(request, part)), default=0)

    def describe(self) -> object:
        """What decides it, as JSON: part of the key of the stage that scores."""
        return [
            [request.participant.name, part, [policy.model_dump() for policy in self._policies(request, part)]]
            for request in self._round.requests
            if not self._is_evaluation(request)
            for part in self._round.parts
        ]

    def _is_evaluation(self, request: SamplingRequest) -> bool:
        return self._round.name == "held-out" and request == self._fusion.for_evaluation(request.participant)

    def _side(self, request: SamplingRequest) -> Side:
        return "sources" if request.participant in self._fusion.sources else "target"

    def _policies(self, request: SamplingRequest, part: str) -> Iterator[SelectionPolicy]:
        """The selections that read a model's answers to the prompts of a part."""
        side = self._side(request)
        for name, policy in self._of_part.get(part, {}).items():
            if side in policy.reads and (side == "sources" or part == "held_out" or self._compares(name, request)):
                yield policy

    def _compares(self, training: str, request: SamplingRequest) -> bool:
        return self._fusion.compared(training) == request.participant

    @cached_property
    def _of_part(self) -> Mapping[str, Mapping[str, SelectionPolicy]]:
        """The policies that select from the prompts of each part, by training."""
        fusion = self._fusion
        fine_tunings = {name: sft.select for name, sft in fusion.recipe.fine_tunings.items()}
        handed_over = {
            name: policy for name, policy in fine_tunings.items() if fusion.recipe.fine_tunings[name].extra_prompts
        }
        preference = {name: method.select for name, method in fusion.recipe.preference.items()}
        quadruples = {"quadruples": fusion.quadruple_policy} if preference else {}
        return {"sft": fine_tunings, "preference": {**handed_over, **preference}, "held_out": quadruples}
