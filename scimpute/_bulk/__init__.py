"""A run of the bulk methods (tl.pmi, tl.gain) on plain arrays. This folder uses no AnnData."""
