"""Attacks and corruptions: how much of a net's accuracy is left."""

from bpfree.robustness.attacks import accuracy, fgsm, mi_fgsm, pgd, random_search
from bpfree.robustness.corruptions import (
    CORRUPTIONS,
    blur,
    brightness,
    contrast,
    corrupted,
    gaussian,
    salt_and_pepper,
    uniform,
)

__all__ = [
    "CORRUPTIONS",
    "accuracy",
    "blur",
    "brightness",
    "contrast",
    "corrupted",
    "fgsm",
    "gaussian",
    "mi_fgsm",
    "pgd",
    "random_search",
    "salt_and_pepper",
    "uniform",
]
