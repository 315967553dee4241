"""Complete YAML configurations, one per experiment: ``importlib.resources.files("visynth.configs")``."""
