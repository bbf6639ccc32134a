"""What everything else builds on: storage, records, optimisers, names."""
