"""A run of the count methods (tl.began, tl.spatial, tl.nmf) on plain arrays. No AnnData.

`run` is the way through: `split` (`molecules`, `entries`) holds counts out, `selection` chooses the complexity, `fit` trains the repeats on
`batches`, `rates` averages them, and `output` applies the posterior step. An `engine` (`began`, `spatial`) is what one method adds. `saved`
and `apply` are for model files.
"""
