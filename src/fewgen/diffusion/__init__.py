"""Diffusion from captions: one pipeline object for small models and Stable Diffusion."""
