"""Noise for the nodes of a program: its distributions, its scale, the loop over draws.

Also which losses answer for it (`credit`). Nothing in here knows of an estimator.
"""
