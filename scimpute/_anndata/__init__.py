"""AnnData in, AnnData out: the only code that reads or writes one. No torch."""
