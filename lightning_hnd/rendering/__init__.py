"""Rendered faces: drawings in which one thing can be changed and nothing else."""

from lightning_hnd.rendering.faces import RenderedFaces

__all__ = ["RenderedFaces"]
