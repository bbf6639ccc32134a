"""Which trial, or which ensemble of trials, should be the result of a sweep?"""
