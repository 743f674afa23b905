"""Draws what the pipeline returns: tables, live bars and plain lines. Nothing else prints for people."""
