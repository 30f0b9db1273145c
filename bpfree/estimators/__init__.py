"""One file per estimator family."""
