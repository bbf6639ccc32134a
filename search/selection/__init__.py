"""Selection of a sweep's result: one trial, or an ensemble of trials."""
