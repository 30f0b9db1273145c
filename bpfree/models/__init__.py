"""Linen models, one module each, which know nothing of estimators.

A module `bpfree.models.<name>` offers a class `Model` with a field `num_classes`; a
config picks it by `config.model.name` and passes it the other entries of `config.model`.
Models are called as `model(x, train=...)`. Collections other than "params" may change in
training, and are read in evaluation.
"""
