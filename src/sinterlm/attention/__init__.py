"""Attention that computes the shared beginning of several sequences once.

The responses of a row share its prompt, prompts share a system message or a few shots, and samples share their
prompt. Each shared part is computed once. A query then sees keys in parts: those that it shares with its siblings, and
its own. The scores of shared keys are one matrix product for all siblings; the scores of own keys are a batch of
products. A softmax runs over all of them (``products.py``, the one algorithm of training and sampling).

Two shapes of input use it:

- Training reads whole sequences at once, with gradients: a line of spans that form a forest (``spans.py``), cut into
  tiles (``tiles.py``, ``tiled.py``), or given to flash attention on a GPU (``flash.py``).
- Sampling reads rows that grow token by token behind one prefix (``rows.py``).

``visibility.py`` decides which keys a query sees. ``plug.py`` plugs all this into a Transformers model, and
``trial.py`` finds out whether the model computes the same with it.
"""
