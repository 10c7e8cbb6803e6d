"""Labelled photographs of species to a classifier that can be trusted, compared and shipped."""
