"""Reproduction of the papers' tables: many given configurations, trained and evaluated."""
