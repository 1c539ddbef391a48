"""Neighbours and images as plain arrays. This folder uses neither AnnData nor torch."""
