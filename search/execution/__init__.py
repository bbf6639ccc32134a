"""Ray as the executor: what runs where, and how a sweep hears of it."""
