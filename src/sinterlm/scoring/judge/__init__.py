"""The scorer ``judge``: a language model behind the OpenAI protocol that grades or compares answers.

- :mod:`.settings`: what a recipe says of it.
- :mod:`.scorer`: the scorer; it asks the server and brings the following together.
- :mod:`.methods`: what a judge is asked about an answer, and what its verdicts are worth: grades, or a win rate.
- :mod:`.prompts`: every word that a judge is told.
- :mod:`.verdicts`: the form of a verdict, and how a reply is read as one.
"""
