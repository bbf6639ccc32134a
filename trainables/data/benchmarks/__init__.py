"""The field's benchmark data sets in their published layouts."""
