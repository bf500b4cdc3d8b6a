"""Diffusion models: noise processes, networks, samplers, training and checkpoints."""
