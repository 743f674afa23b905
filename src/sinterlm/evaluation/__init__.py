"""Pure functions from records to figures: rates with intervals, paired differences, internal reward accuracies."""
