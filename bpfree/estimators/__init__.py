"""One file per family of gradient estimators, and what they have in common.

`base` makes an optax transformation of an estimator; `settings`, `runs` and
`perturbation` are the arithmetic that noise at the nodes shares. Those of equilibrium
propagation are in `bpfree.equilibrium`.
"""
