"""The record of a sweep: which trials exist, how they ended, who may write."""
