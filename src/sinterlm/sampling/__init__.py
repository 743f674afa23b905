"""Engines behind one protocol: asked for (prompt, sample index) items, they give back answers."""
