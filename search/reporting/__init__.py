"""The report of a sweep: one page, a table of its trials and figures, from its folder alone."""
