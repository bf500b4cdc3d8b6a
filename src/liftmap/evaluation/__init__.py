"""Measures how well scores separate in-domain from out-of-distribution images."""
