"""Diffusion side: condition maps in, video frames out."""
