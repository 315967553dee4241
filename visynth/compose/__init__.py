"""Composition: the generator without training. Real defect pixels, cut by mask, set into defect-free images."""
