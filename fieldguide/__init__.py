"""Labelled photographs of species to a classifier that can be trusted, compared and shipped."""

import os

# Before torch is imported. OpenMP's threads spin while they wait for each other; beside other busy processes the one that all
# wait for does not get a core then, and training is several times slower (benchmarks/neighbours.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
