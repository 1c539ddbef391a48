"""Networks and their losses: tensors in, tensors out. Nothing here knows of AnnData or of the rest of the package."""
