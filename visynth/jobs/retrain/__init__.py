"""Keeping a generator fresh: retrain when there is a reason, judge, promote, roll back."""
