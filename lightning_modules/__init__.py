"""Lightning modules that train image models. Import as ``visynth.lightning_modules``."""
