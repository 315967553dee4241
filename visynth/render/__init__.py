"""Bulk rendering: a fixed plan, idempotent shards, encoders in worker processes, exports of boxes and masks.

This package must import no torch by itself: encoding workers start from here.
"""
