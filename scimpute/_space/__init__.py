"""Neighbours and images as plain arrays. No AnnData, no torch."""
