"""A run of the count methods (tl.began, tl.spatial, tl.nmf) on plain arrays. No AnnData."""
