"""Generators of tables, sensor series and text. Import as ``visynth.tabular``. Nothing is here yet."""
