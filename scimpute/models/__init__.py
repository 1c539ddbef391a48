"""Networks and their losses: tensors in, tensors out. This folder imports nothing from the rest of the package.

Methods: `began` (its losses; `drop` is the Drop operator, `conv` the image-shaped networks), `multimodal` and `factor` (the generators of
`tl.spatial` and `tl.nmf`), `spatial` (their losses, with the neighbour loss), `pmi_gain` and `sample_regression` (`tl.pmi`, `tl.gain`).
Shared: `batch`, `layers`, `likelihood`, `posterior` (the empirical-Bayes step) and `dispersion` (its prior).
"""
