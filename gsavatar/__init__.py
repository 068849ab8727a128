"""Gaussian-splatting avatars of one person, trained from a short video and driven by speech."""

__version__ = "0.1.0"
