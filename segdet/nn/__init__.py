"""Layers that more than one family uses, and how weights are learned."""
