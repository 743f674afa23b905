"""Scorers behind one protocol: responses in, one score each out."""
