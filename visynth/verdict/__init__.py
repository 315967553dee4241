"""Does A beat B, per class? Rows and tables, no images."""
