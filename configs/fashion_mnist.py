"""Fashion-MNIST by likelihood ratio: an MLP 784-256-256-10 without backprop, 10 epochs.

    bpfree-train --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

The run reads the folder `fashion_mnist` of the directory that BPFREE_DATA_DIR names,
Debian's package dataset-fashion-mnist, or a copy prepared by TFDS; without any of them it
says what to do.

Variants: `fashion_mnist.py:noisy` (large sigma, noisy pairing: the gradient of the
smoothed loss), `fashion_mnist.py:np` (node perturbation), `fashion_mnist.py:bp`
(backprop, the control) and `fashion_mnist.py:smoke`, which needs no files: one step of a
small net on made-up data of the same shapes. Seeds: `--config.seed=1`.

Test accuracy (10,000 images) of seeds 0, 1 and 2, each by the command above; their mean
and standard deviation; CPU, JAX 0.10.2 (`python scripts/launched.py --table=images`);
and seconds of training of the third seed, on one core beside another job:

    likelihood ratio  .8606 .8592 .8595  .8598 +- .0007   24 s
    noisy             .8589 .8613 .8574  .8592 +- .0020   33 s
    bp                .8993 .9006 .9019  .9006 +- .0013    3 s

Learning rate and preprocessing were compared for all three on validation, seed 0, 3
epochs (likelihood ratio / noisy / bp): 1e-3 .834 .828 .880; 3e-3 .840 .833 .882; 3e-3
centred .851 .849 .889. The rest of the recipe is that of `mnist.py`. np has not been
measured.
"""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

_mnist = run_path(str(Path(__file__).with_name("mnist.py")))["get_config"]


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of mnist.py on Fashion-MNIST; arg: "noisy", "np", "bp" or "smoke"."""
    config = _mnist(arg)
    config.data.name = "fashion_mnist"
    return config
